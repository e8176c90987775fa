# `make demo` and `make test` need nothing but git, make and python3-venv; `make peers` needs root.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test lint peers bench screenshots constraints clean

demo: .venv/ok
	@$(BIN)/python -m tests.messages var/demo/messages
	@$(BIN)/lmtp-atrest demo --directory var/demo --messages var/demo/messages

test: .venv/ok lint
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n auto --dist worksteal
	@$(BIN)/coverage combine -q && $(BIN)/coverage report --skip-covered --sort=cover

lint: .venv/ok
	$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Real Postfix, Dovecot, Exim, swaks and Chromium in roots of their own; nothing is installed on
# the host.
peers:
	tests/peers/build.sh

# Against Dovecot's LMTP, on an idle machine, as root; `BENCH=--quick` is one short round.
bench: .venv/ok
	$(BIN)/python -m bench $(BENCH)

# The portal's pages as the documentation shows them; as root, after `make peers`.
screenshots: .venv/ok
	mkdir -p docs/img
	$(BIN)/pytest -q tests/integration/test_portal_browser.py --pictures=docs/img

.venv/ok: pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo 'Python has no venv support here: sudo apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Newest versions that fit together; read the diff before you commit it.
constraints:
	rm -rf var/constraints && $(PYTHON) -m venv var/constraints
	var/constraints/bin/pip install -q --upgrade -e '.[dev]'
	{ sed -n '/^#/p' constraints.txt; \
	  var/constraints/bin/pip freeze --exclude-editable --exclude lmtp-atrest | sort -f; } > constraints.new
	mv constraints.new constraints.txt && rm -rf var/constraints

clean:
	rm -rf .venv var dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
