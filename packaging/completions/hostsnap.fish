# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_hostsnap_global_optspecs
    string join \n json host= h/help V/version
end

function __fish_hostsnap_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_hostsnap_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_hostsnap_using_subcommand
    set -l cmd (__fish_hostsnap_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c hostsnap -n "__fish_hostsnap_needs_command" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_needs_command" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -s V -l version -d 'Print version'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "create" -d 'Take a snapshot of the disks that hold the given paths'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "list" -d 'List this machine\'s snapshots, newest first'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "show" -d 'Show one snapshot'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "delete" -d 'Delete snapshots'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "attach" -d 'Plug a snapshot\'s disks into this machine, as new disks beside the original ones'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "detach" -d 'Take a snapshot\'s disks out of this machine again'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "mount" -d 'Mount a file system of a snapshot at a folder, beside its original'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "umount" -d 'Unmount what `hostsnap mount` mounted, and give the disks back'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "cp" -d 'Copy files out of a snapshot, with owners, modes, times, ACLs, attributes, links and holes'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "ls" -d 'List a folder of a snapshot'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "restore" -d 'Give disks of this machine the bytes that they had in a snapshot'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "disks" -d 'Show this machine\'s disks, what is mounted on them, and what the host knows of them'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "doctor" -d 'Say in plain words what is wrong and what to do'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "thaw" -d 'Emergency exit: thaw every file system of this machine, whoever froze it'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "daemon" -d 'Serve the host: it may ask for snapshots (systemd starts it so)'
complete -c hostsnap -n "__fish_hostsnap_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l label -d 'Attach a label; may be repeated' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l note -d 'Attach a remark' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l consistency -d 'The least that is acceptable: crash, filesystem or application. What is worth less is not kept. More is always tried for' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l keep-for -d 'Let the host remove it after this time, such as 7d' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l freeze-timeout -d 'The longest that file systems may be frozen; thawed then whatever happens' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l request-id -d 'Repeating a request with the same identifier gives the same snapshot' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l all -d 'Take all disks that hold a mounted file system or that the host knows'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l keep-anyway -d 'Keep a snapshot that is worth less, too: it says what it is worth, and the exit code is 7'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l dry-run -d 'Check everything and say what would be done; freeze and take nothing'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l no-wait -d 'Do not wait until the snapshot is durable and whole'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand create" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand list" -l label -d 'Only those with this label; may be repeated' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand list" -l disk -d 'Only those that hold the disk with this serial' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand list" -l state -d 'Only those in this state' -r -f -a "settling\t'Cut, but not yet durable'
ready\t'Durable and whole'
failed\t'Lost by the storage before it was whole'"
complete -c hostsnap -n "__fish_hostsnap_using_subcommand list" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand list" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand show" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand show" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand show" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand delete" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand delete" -s y -l yes -d 'Do not ask'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand delete" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand delete" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand attach" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand attach" -l writable -d 'Let them be written to: a clone, thrown away when it is detached'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand attach" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand detach" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand detach" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand detach" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l path -d 'Which file system: a path that was on it. Not needed where the snapshot holds one' -r -F
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l uuid -d 'The file system with this UUID, where several would do' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l luks-key-file -d 'Open LUKS with this key file; `-` reads the key from standard input' -r -F
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l writable -d 'Let it be written to: a clone, thrown away when it is unmounted'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l dry-run -d 'Say what would be done; attach and mount nothing'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand mount" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand umount" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand umount" -l all -d 'Everything that is mounted from snapshots, and what killed commands left'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand umount" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand umount" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand cp" -l uuid -d 'The file system with this UUID, where several would do' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand cp" -l luks-key-file -d 'Open LUKS with this key file; `-` reads the key from standard input' -r -F
complete -c hostsnap -n "__fish_hostsnap_using_subcommand cp" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand cp" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand cp" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand ls" -l uuid -d 'The file system with this UUID, where several would do' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand ls" -l luks-key-file -d 'Open LUKS with this key file; `-` reads the key from standard input' -r -F
complete -c hostsnap -n "__fish_hostsnap_using_subcommand ls" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand ls" -s l -l long -d 'With mode, owner, size and time'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand ls" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand ls" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -l preview -l dry-run -d 'Say what would be done, what is lost and what is in the way; change nothing'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -l remount -d 'Unmount what is mounted of the disks, and mount it again in the same way, also after a failure'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -l no-safety -d 'Do not keep what the disks hold now: it is lost'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -l changed-layout -d 'Also where a disk was partitioned or formatted anew since'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand disks" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand disks" -l capture -d 'Print what /proc and /sys say, as the tests read it: for a bug report'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand disks" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand disks" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand doctor" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand doctor" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand thaw" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand thaw" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand thaw" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand daemon" -l listen -d 'Listen on this Unix socket instead of vsock port 989' -r -F
complete -c hostsnap -n "__fish_hostsnap_using_subcommand daemon" -l host -d 'Where the host listens: vsock:CID:PORT, or unix:/path' -r
complete -c hostsnap -n "__fish_hostsnap_using_subcommand daemon" -l allow-local -d 'Also serve CID 1, this machine itself: for tests'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand daemon" -l json -d 'Print JSON; errors too, on stderr'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand daemon" -s h -l help -d 'Print help'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "create" -d 'Take a snapshot of the disks that hold the given paths'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "list" -d 'List this machine\'s snapshots, newest first'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "show" -d 'Show one snapshot'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "delete" -d 'Delete snapshots'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "attach" -d 'Plug a snapshot\'s disks into this machine, as new disks beside the original ones'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "detach" -d 'Take a snapshot\'s disks out of this machine again'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "mount" -d 'Mount a file system of a snapshot at a folder, beside its original'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "umount" -d 'Unmount what `hostsnap mount` mounted, and give the disks back'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "cp" -d 'Copy files out of a snapshot, with owners, modes, times, ACLs, attributes, links and holes'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "ls" -d 'List a folder of a snapshot'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "restore" -d 'Give disks of this machine the bytes that they had in a snapshot'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "disks" -d 'Show this machine\'s disks, what is mounted on them, and what the host knows of them'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "doctor" -d 'Say in plain words what is wrong and what to do'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "thaw" -d 'Emergency exit: thaw every file system of this machine, whoever froze it'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "daemon" -d 'Serve the host: it may ask for snapshots (systemd starts it so)'
complete -c hostsnap -n "__fish_hostsnap_using_subcommand help; and not __fish_seen_subcommand_from create list show delete attach detach mount umount cp ls restore disks doctor thaw daemon help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
