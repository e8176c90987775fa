<?php

/**
 * Roundcube's password plugin changes the password through lmtp-atrest: at the site
 * (site.password_command) and, for users whose mail is encrypted, what opens the mail.
 *
 *   cp lmtp_atrest.php …/plugins/password/drivers/
 *   plugins/password/config.inc.php:
 *       $config['password_driver'] = 'lmtp_atrest';
 *       $config['password_confirm_current'] = true;
 *   /etc/sudoers.d/lmtp-atrest (the web server's user, and nothing else):
 *       www-data ALL=(root) NOPASSWD: /usr/local/bin/lmtp-atrest account password --from-stdin
 *
 * Name and passwords travel on the command's standard input, never as arguments: sudo allows this
 * one line and no other.
 */
class rcube_lmtp_atrest_password
{
    const COMMAND = ['sudo', '-n', '/usr/local/bin/lmtp-atrest', 'account', 'password', '--from-stdin'];

    public function save($currpass, $newpass, $username)
    {
        $streams = [['pipe', 'r'], ['file', '/dev/null', 'w'], ['pipe', 'w']];
        $process = proc_open(self::COMMAND, $streams, $pipes);
        if (!is_resource($process)) {
            return PASSWORD_CONNECT_ERROR;
        }
        fwrite($pipes[0], $username . "\0" . $currpass . "\0" . $newpass . "\0");
        fclose($pipes[0]);
        $said = preg_replace('/^lmtp-atrest: /m', '', trim(stream_get_contents($pipes[2])));
        fclose($pipes[2]);
        switch (proc_close($process)) {
            case 0:
                return PASSWORD_SUCCESS;
            case 2:  // weaker than the site allows; the sentence is for the user
                return ['code' => PASSWORD_CONSTRAINT_VIOLATION, 'message' => $said];
            case 4:
            case 11:
                return PASSWORD_CONNECT_ERROR;
            default:
                return PASSWORD_ERROR;
        }
    }
}
