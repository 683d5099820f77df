# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_hostsnapd_global_optspecs
    string join \n h/help V/version
end

function __fish_hostsnapd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_hostsnapd_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_hostsnapd_using_subcommand
    set -l cmd (__fish_hostsnapd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -s V -l version -d 'Print version'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "serve" -d 'Run the service (systemd starts it so)'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "check" -d 'Prove the configuration: every disk, driver, program and socket; changes nothing'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "vms" -d 'Show the virtual machines with their disks'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "list" -d 'List snapshots, newest first'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "show" -d 'Show one snapshot'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "create" -d 'Ask the agent in a virtual machine to take a snapshot of it'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "delete" -d 'Delete snapshots'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "lock" -d 'Lock a snapshot: until then nobody can delete it, its time to keep neither'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "unlock" -d 'Unlock a snapshot'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "detach" -d 'Take out of its machine what a guest has attached of its snapshots'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "restore" -d 'Give the disks of a stopped virtual machine the bytes that they had in a snapshot, the root disk included'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "ping" -d 'Ask the agent in a virtual machine whether it is there and what it is doing'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "changes" -d 'Show where the disks of one snapshot differ from another\'s'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "export" -d 'Serve a disk of a snapshot to backup tools, read-only, over NBD on a Unix socket'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "reconcile" -d 'Compare the catalog with the storage and finish what is unfinished'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "rebuild-catalog" -d 'Make a new catalog from what the storage holds, while the service is stopped'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "audit" -d 'Show what was decided: done, refused, failed; the oldest first'
complete -c hostsnapd -n "__fish_hostsnapd_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand serve" -l config -d 'The configuration file' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand serve" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand check" -l config -d 'The configuration file' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand check" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand check" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand vms" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand vms" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand vms" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand list" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand list" -l vm -d 'Only this virtual machine\'s' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand list" -l label -d 'Only those with this label; may be repeated' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand list" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand list" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand show" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand show" -l vm -d 'Only among this virtual machine\'s' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand show" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand show" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l label -d 'Attach a label; may be repeated' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l note -d 'Attach a remark' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l consistency -d 'The least that is acceptable: crash, filesystem or application; with --no-agent crash' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l keep-for -d 'Remove it after this time, such as 7d' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l freeze-timeout -d 'The longest that the guest may be frozen' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l request-id -d 'Repeating a request with the same identifier gives the same snapshot' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -l no-agent -d 'Do not ask the guest: the host cuts alone, as a power cut would, whatever the guest is doing'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand delete" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand delete" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand delete" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand lock" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand lock" -l until -d 'Until this moment, such as 2030-01-31 (its first, in UTC) or 2030-01-31T18:00:00Z' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand lock" -l for -d 'For this long from now, such as 30d' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand lock" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand lock" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand unlock" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand unlock" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand unlock" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand detach" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand detach" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand restore" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand restore" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand restore" -l preview -l dry-run -d 'Say what would be done; change nothing'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand restore" -l no-safety -d 'Do not keep what the disks hold now: it is lost'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand restore" -l changed-layout -d 'Also where a disk was partitioned or formatted anew since'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand restore" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand ping" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand ping" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand ping" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand changes" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand changes" -l disk -d 'Only this disk' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand changes" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand changes" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand export" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand export" -l since -d 'Also tell what changed on it since this snapshot of the same machine, where the storage can' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand export" -l socket -d 'Where to serve it; without, beside the service\'s own socket' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand export" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand export" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand reconcile" -l control -d 'The socket of the running service' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand reconcile" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand reconcile" -s h -l help -d 'Print help'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand rebuild-catalog" -l config -d 'The configuration file' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand rebuild-catalog" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand rebuild-catalog" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand audit" -l config -d 'The configuration file' -r -F
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand audit" -l vm -d 'Only this virtual machine\'s' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand audit" -l since -d 'Only from then on: how long ago, such as 2h or 7d, or a moment, such as 2026-11-24T08:00:00Z' -r
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand audit" -l json -d 'Print JSON'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand audit" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "serve" -d 'Run the service (systemd starts it so)'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "check" -d 'Prove the configuration: every disk, driver, program and socket; changes nothing'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "vms" -d 'Show the virtual machines with their disks'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "list" -d 'List snapshots, newest first'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "show" -d 'Show one snapshot'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "create" -d 'Ask the agent in a virtual machine to take a snapshot of it'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "delete" -d 'Delete snapshots'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "lock" -d 'Lock a snapshot: until then nobody can delete it, its time to keep neither'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "unlock" -d 'Unlock a snapshot'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "detach" -d 'Take out of its machine what a guest has attached of its snapshots'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "restore" -d 'Give the disks of a stopped virtual machine the bytes that they had in a snapshot, the root disk included'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "ping" -d 'Ask the agent in a virtual machine whether it is there and what it is doing'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "changes" -d 'Show where the disks of one snapshot differ from another\'s'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "export" -d 'Serve a disk of a snapshot to backup tools, read-only, over NBD on a Unix socket'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "reconcile" -d 'Compare the catalog with the storage and finish what is unfinished'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "rebuild-catalog" -d 'Make a new catalog from what the storage holds, while the service is stopped'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "audit" -d 'Show what was decided: done, refused, failed; the oldest first'
complete -c hostsnapd -n "__fish_hostsnapd_using_subcommand help; and not __fish_seen_subcommand_from serve check vms list show create delete lock unlock detach restore ping changes export reconcile rebuild-catalog audit help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
