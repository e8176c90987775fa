#!/bin/bash
# Builds the roots in which tests run real programs: var/peers/<root>, by debootstrap.
#
#   sudo make peers                          bookworm and trixie (Debian 12 and 13, with mail
#                                            servers) and browser (Debian 13 with Chromium)
#   sudo tests/peers/build.sh trixie
#
# Nothing but debootstrap is ever installed on the host: Postfix and Exim exclude each other as
# packages, and installed servers start at once on all interfaces. The browser's root is one of its
# own, three times as large as the others. A finished root carries a stamp with the digest of this
# file; it is built again only when that differs. PEERS_MIRROR names a Debian mirror, where
# debootstrap's own default will not do.
set -Eeuo pipefail

cd "$(dirname "$(realpath "$0")")/../.."
roots=$PWD/var/peers
recipe=$(sha256sum <tests/peers/build.sh | cut -d' ' -f1)

servers=(
  dovecot-imapd dovecot-lmtpd dovecot-pop3d dovecot-sieve dovecot-managesieved dovecot-auth-lua
  lua-socket postfix swaks libsasl2-modules
)
browser=(
  chromium chromium-driver fontconfig fonts-inter fonts-dejavu-core fonts-urw-base35 pngquant
)

# The accessibility checker that tests run inside their pages; what npm fetched must be this.
axe_version=4.14.1
axe_sha512=1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b734f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5

finished() { # root
  [ "$(cat "$1/peers-recipe" 2>/dev/null)" = "$recipe" ]
}

want_npm() {
  command -v npm >/dev/null && return
  echo "peers: the root of the browser needs npm, to fetch axe-core: sudo apt install npm" >&2
  exit 1
}

want_debootstrap() {
  command -v debootstrap >/dev/null && return
  echo "peers: installing debootstrap on this host"
  apt-get -qq install -y --no-install-recommends debootstrap >/dev/null 2>&1 || {
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends debootstrap
  }
}

# Runs in mount and pid namespaces of its own: whatever debootstrap or a package mounts or starts
# ends with it, also after an interrupt.
contained() { # command ...
  unshare --mount --pid --fork --kill-child --propagation private "$@"
}

inside() { # root command ...
  local root=$1
  shift
  # shellcheck disable=SC2016  # expanded by the inner shell
  contained sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root" \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive ${http_proxy:+http_proxy="$http_proxy"} "$@"
}

# Exim cannot be installed beside Postfix, so its packages, Debian's configuration among them, are
# unpacked under /opt/exim; only the libraries that it links are installed.
add_exim() { # root
  # shellcheck disable=SC2016
  inside "$1" bash -euc '
    cd /tmp
    apt-get -qq install -y --no-install-recommends $(
      apt-cache depends exim4-daemon-light | sed -n "s/^ *Depends: \(lib.*\)/\1/p") >/dev/null
    apt-get -qq download exim4-daemon-light exim4-base exim4-config 2>/dev/null
    for package in exim4-*.deb; do dpkg -x "$package" /opt/exim; done
    rm -f exim4-*.deb
    useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin Debian-exim
    /opt/exim/usr/sbin/exim4 -bV | head -1'
}

add_servers() { # root
  inside "$1" apt-get -qq install -y --no-install-recommends "${servers[@]}"
  add_exim "$1"
}

add_browser() { # root
  inside "$1" apt-get -qq install -y --no-install-recommends "${browser[@]}"
  # Pages name the fonts of the reader's system; this system's are these.
  cat >"$1/etc/fonts/local.conf" <<'FONTS'
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <alias><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
  <alias><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
  <alias><family>serif</family><prefer><family>P052</family></prefer></alias>
</fontconfig>
FONTS
  add_axe "$1"
}

add_axe() { # root
  local archive=axe-core-$axe_version.tgz
  mkdir "$1/tmp/axe"
  (cd "$1/tmp/axe" && npm pack --silent --cache ./cache "axe-core@$axe_version")
  (cd "$1/tmp/axe" && echo "$axe_sha512  $archive" | sha512sum --check --quiet)
  tar -xzOf "$1/tmp/axe/$archive" package/axe.min.js >"$1/usr/share/axe.min.js"
  rm -r "$1/tmp/axe"
}

build() { # root
  local root=$roots/$1 suite=$1 add=add_servers work started=$SECONDS
  [ "$1" = browser ] && suite=trixie add=add_browser
  log=$roots/$1.log
  if finished "$root"; then
    echo "peers: $1 is complete"
    return
  fi
  # Built beside and renamed at the end: a name without a suffix is always a finished root.
  work=$roots/$1.building
  rm -rf --one-file-system "$work" && mkdir -p "$work" "$roots/archives/$1"
  echo "peers: building $1 (about a minute)"
  contained debootstrap --variant=minbase --cache-dir="$roots/archives/$1" "$suite" "$work" \
    ${PEERS_MIRROR:+"$PEERS_MIRROR"} >"$log" 2>&1
  printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d" # no package starts a service
  chmod 755 "$work/usr/sbin/policy-rc.d"
  {
    "$add" "$work"
    inside "$work" apt-get clean
  } >>"$log" 2>&1 </dev/null
  rm -rf "$work"/var/lib/apt/lists/* "$work"/usr/share/{doc,man,locale}/*
  echo "$recipe" >"$work/peers-recipe"
  rm -rf --one-file-system "$root" && mv "$work" "$root"
  echo "peers: $1 built in $((SECONDS - started)) s, $(du -sm "$root" | cut -f1) MB"
}

if [ "$(id -u)" -ne 0 ]; then
  echo "peers: debootstrap and chroot need root: sudo make peers" >&2
  exit 1
fi
mkdir -p "$roots"
exec 3>&2
trap 'status=$?; trap - ERR; tail -n 5 "${log:-/dev/null}" >&3; exit $status' ERR
exec 9>"$roots/lock"
flock 9 # a second build waits instead of working in the same place
[ $# -gt 0 ] || set -- bookworm trixie browser
[[ " $* " != *" browser "* ]] || want_npm
want_debootstrap

# All at once, each in a process group of its own that an interrupt of this script ends.
set -m
builds=() status=0
trap 'for build in "${builds[@]}"; do kill -- "-$build" 2>/dev/null; done; exit 130' INT TERM
for root in "$@"; do
  build "$root" </dev/null &
  builds+=($!)
done
for build in "${builds[@]}"; do wait "$build" || status=$?; done
exit "$status"
