//! What is in `packaging/` fits the programs: pages and completions are those of the command line,
//! the example configuration is valid, the units are what systemd takes, the hooks are hooks and good shell.
//!
//! `cargo xtask gen` writes the pages and completions anew: it runs this with `HOSTSNAP_BLESS=1`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;
use std::{env, fs};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use guest_agent::hooks::Hooks;
use host_proxy::config::{Config, LibvirtConfig};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

/// File name to contents.
type Files = BTreeMap<String, String>;

/// One page for each command; section 8, system administration (man(1)).
fn man_pages(command: &Command, pages: &mut Files) {
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).for_each(|sub| man_pages(sub, pages));
    let page = Man::new(command.clone()).section("8");
    let mut text = Vec::new();
    page.render(&mut text).unwrap();
    pages.insert(page.get_filename(), String::from_utf8(text).unwrap());
}

fn completions(mut command: Command) -> Files {
    let name = command.get_name().to_owned();
    let file = |shell: Shell| {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut script);
        let file = match shell {
            Shell::Zsh => format!("_{name}"),
            shell => format!("{name}.{shell}"),
        };
        (file, String::from_utf8(script).unwrap())
    };
    [Shell::Bash, Shell::Zsh, Shell::Fish].map(file).into()
}

/// The folder holds exactly these files for this program.
fn compare(folder: &Path, program: &str, made: &Files) {
    let belongs = |file: &str| {
        let stem = file.trim_start_matches('_');
        stem.strip_prefix(program).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
    };
    if env::var_os("HOSTSNAP_BLESS").is_some() {
        fs::create_dir_all(folder).unwrap();
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if belongs(entry.file_name().to_str().unwrap()) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        made.iter().for_each(|(file, text)| fs::write(folder.join(file), text).unwrap());
    }
    let there: Files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| belongs(entry.file_name().to_str().unwrap()))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    let what_to_do = "cargo xtask gen";
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&there), names(made), "{}: run {what_to_do}", folder.display());
    for (file, text) in made {
        assert!(there[file] == *text, "{} is out of date: run {what_to_do}", folder.join(file).display());
    }
}

fn is_up_to_date(command: Command) {
    let name = command.get_name().to_owned();
    let mut built = command.clone().disable_help_subcommand(true);
    built.build();
    let mut pages = Files::new();
    man_pages(&built, &mut pages);
    compare(&packaging().join("man"), &name, &pages);
    compare(&packaging().join("completions"), &name, &completions(command));
}

#[test]
fn the_hosts_pages_and_completions_are_those_of_its_command_line() {
    is_up_to_date(host_proxy::cli::Cli::command());
}

#[test]
fn the_guests_pages_and_completions_are_those_of_its_command_line() {
    is_up_to_date(guest_agent::cli::Cli::command());
}

#[test]
fn the_example_configuration_is_valid_and_its_comments_show_the_defaults() {
    let path = packaging().join("hostsnapd.toml");
    let text = fs::read_to_string(&path).unwrap();
    let as_it_stands = Config::parse(&text, &path).unwrap();

    // `# key = value` is a key that was left out. Of `cid` and `socket` only one may stand, and of
    // qmp, bytes and discover the example only shows the form.
    let only_shown = ["socket", "qmp", "bytes", "discover"];
    let mut shown = Vec::new();
    let written_out: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix("# ").and_then(|rest| rest.split_once(" = ")) {
            Some((key, value)) if key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_') => {
                shown.push(key.to_owned());
                if only_shown.contains(&key) { String::new() } else { format!("{key} = {value}") }
            }
            _ => line.to_owned(),
        })
        .collect();
    let written_out = Config::parse(&written_out.join("\n"), &path).unwrap();
    assert_eq!(written_out.service, as_it_stands.service);
    assert_eq!(written_out.stores[0].min_free, as_it_stands.stores[0].min_free);
    let [before, after] = [&as_it_stands.vms[0], &written_out.vms[0]];
    assert_eq!(before.quota, after.quota);
    assert_eq!((&before.allow, before.guest_may_delete), (&after.allow, after.guest_may_delete));
    assert_eq!(shown.len(), 16, "keys that are commented out: {shown:?}");
}

#[test]
fn the_examples_of_other_stores_and_of_libvirt_are_valid_and_show_the_defaults() {
    let path = packaging().join("hostsnapd.toml");
    let text = fs::read_to_string(&path).unwrap();
    let beside = "[service]\ndiscover = \"libvirt\"\n[[store]]\nname = \"images\"\ndriver = \"btrfs\"\npath = \"/srv\"\n";
    let shown: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("#     ").filter(|rest| !rest.starts_with(' ')))
        .flat_map(|line| [line, "\n"])
        .collect();
    let shown = format!("{beside}{shown}");
    let written_out = Config::parse(&shown, &path).unwrap();
    let default: String =
        shown.lines().filter(|line| !line.contains("_watermark")).flat_map(|line| [line, "\n"]).collect();
    assert_eq!(written_out.stores, Config::parse(&default, &path).unwrap().stores);
    let libvirt = written_out.libvirt.unwrap();
    let store = Some("images".to_owned());
    assert_eq!(libvirt, LibvirtConfig { store, stores: libvirt.stores.clone(), ..LibvirtConfig::default() });
}

/// The unit's directives, comments left out.
fn unit(name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(packaging().join("systemd").join(name)).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The incident: a daemon in a mount namespace of its own sees other file systems at the paths that
/// its users name (systemd.exec(5): each of these gives it one).
#[test]
fn the_guests_daemon_sees_the_machines_own_mounts() {
    let namespaced = [
        "Protect",
        "Private",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "Bind",
        "TemporaryFileSystem",
        "ProcSubset",
        "Root",
        "Mount",
        "Extension",
        "LogNamespace",
        "DynamicUser",
        "LoadCredential",
        "SetCredential",
        "NetworkNamespacePath",
    ];
    for (key, value) in unit("hostsnap-agent.service") {
        assert!(!namespaced.iter().any(|one| key.starts_with(one)), "{key}={value}");
    }
}

/// The incident: stopping the unit killed the thaw keeper together with the daemon, and the machine
/// stayed frozen (systemd.kill(5)).
#[test]
fn stopping_the_guests_daemon_spares_its_thaw_keeper() {
    let unit = unit("hostsnap-agent.service");
    let value = |wanted: &str| unit.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.as_str());
    assert_eq!(value("KillMode"), Some("process"));
    assert_eq!(value("OOMPolicy"), Some("continue"));
}

#[test]
fn the_units_are_what_systemd_takes() {
    let folder = tempfile::tempdir().unwrap();
    let units = ["hostsnapd.service", "hostsnapd.socket", "hostsnap-agent.service"];
    for name in units {
        let text = fs::read_to_string(packaging().join("systemd").join(name)).unwrap();
        // The programs need not be installed where the units are looked at.
        let text = text.replace("ExecStart=/usr/bin/hostsnapd serve", "ExecStart=/bin/true");
        let text = text.replace("ExecStart=/usr/bin/hostsnap daemon", "ExecStart=/bin/true");
        fs::write(folder.path().join(name), text).unwrap();
    }
    for name in units {
        let output = Program::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(folder.path().join(name))
            .output()
            .expect("systemd-analyze looks at the units: apt-get install systemd");
        let told = String::from_utf8_lossy(&output.stderr);
        let about_ours = told.lines().any(|line| line.contains("hostsnap"));
        assert!(output.status.success() && !about_ours, "{name}: {told}");
    }
}

#[test]
fn the_hooks_are_found_where_they_are_linked_and_what_they_share_is_none() {
    // Installed as docs/guide/install.md says, and all of them enabled.
    let folder = tempfile::tempdir().unwrap();
    let enabled = folder.path().join("hooks.d");
    fs::create_dir(&enabled).unwrap();
    fs::set_permissions(&enabled, fs::Permissions::from_mode(0o755)).unwrap();
    let hooks: Vec<_> = fs::read_dir(packaging().join("hooks")).unwrap().map(Result::unwrap).collect();
    for hook in &hooks {
        let installed = folder.path().join(hook.file_name());
        fs::copy(hook.path(), &installed).unwrap();
        let mode = hook.metadata().unwrap().permissions().mode() & 0o777;
        let is_shared = hook.file_name() == "common.sh";
        assert_eq!(mode, if is_shared { 0o644 } else { 0o755 }, "{}", hook.path().display());
        std::os::unix::fs::symlink(&installed, enabled.join(hook.file_name())).unwrap();
    }
    let found = Hooks::find(&enabled, Duration::from_secs(1)).unwrap();
    assert_eq!(found.len(), hooks.len() - 1);
    // Each has a limit of its own, and one of them fits into what the host waits for all (max_lease).
    assert!(found.longest() > Duration::from_secs(30) * u32::try_from(found.len()).unwrap());
    assert!(found.longest() < Duration::from_secs(120) * u32::try_from(found.len()).unwrap());
}

#[test]
fn the_hooks_are_good_shell() {
    let mut scripts: Vec<_> =
        fs::read_dir(packaging().join("hooks")).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.push(packaging().join("../tests/stories/servers.sh"));
    scripts.push(packaging().join("initramfs-tools/hostsnap"));
    let output = Program::new("shellcheck")
        .args(["--external-sources", "--source-path=SCRIPTDIR", "--shell=sh"])
        .args(&scripts)
        .output()
        .expect("shellcheck looks at the hooks: apt-get install shellcheck");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
