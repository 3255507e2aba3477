//! The packages, made of a development build, looked into and taken through their life in scratch directories.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The packages of all formats.
struct Packages {
    dir: TempDir,
    deb: PathBuf,
    rpm: PathBuf,
    tar: PathBuf,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What the command prints; it must succeed.
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|why| panic!("{command:?}: {why}"));
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

fn xtask(words: &[&str]) -> Command {
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(words);
    xtask
}

/// Whether all these programs are here; says so when not.
fn there(tools: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| !path.split(':').any(|dir| Path::new(dir).join(tool).is_file()))
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: these programs are not installed here: {missing:?}");
    }
    missing.is_empty()
}

fn is_root() -> bool {
    done(Command::new("id").arg("-u")).trim() == "0"
}

/// All formats, made once; `None`, with a message, where a tool is missing.
fn packages() -> Option<&'static Packages> {
    static PACKAGES: OnceLock<Option<Packages>> = OnceLock::new();
    let made = PACKAGES.get_or_init(|| {
        if !there(&["dpkg-deb", "rpmbuild", "rpm", "strip", "objdump", "gzip", "tar"]) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        // `cargo test` of the workspace has built it, for the tests of the command; else it is built now.
        let built = Path::new(env!("CARGO_BIN_EXE_xtask")).with_file_name("holdfast");
        let mut make = xtask(&["package", "all", "--quick", "--glibc", "9", "--out"]);
        make.arg(dir.path());
        match built.exists() {
            true => make.arg("--binary").arg(built),
            false => make.args(["--profile", "dev"]),
        };
        let said = done(&mut make);
        let path = |end: &str| {
            PathBuf::from(said.lines().find(|line| line.ends_with(end)).expect("a path"))
        };
        let (deb, rpm, tar) = (path(".deb"), path(".rpm"), path(".tar.gz"));
        assert!(!dir.path().join("work").exists());
        Some(Packages { dir, deb, rpm, tar })
    });
    made.as_ref()
}

/// Modes and paths of the files and links in the .deb.
fn deb_files(deb: &Path) -> Vec<(String, String)> {
    let list = done(Command::new("dpkg-deb").arg("-c").arg(deb));
    let mut files = Vec::new();
    for line in list.lines().filter(|line| !line.starts_with('d')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "root/root", "{line}");
        files.push((words[0].to_owned(), words[5].trim_start_matches('.').to_owned()));
    }
    files
}

#[test]
fn what_is_in_the_packages() {
    let Some(packages) = packages() else { return };
    let files = deb_files(&packages.deb);
    let mode = |path: &str| {
        let found = files.iter().find(|(_, there)| there == path);
        found.unwrap_or_else(|| panic!("{path} is not in the package")).0.as_str()
    };
    assert_eq!(mode("/usr/bin/holdfast"), "-rwxr-xr-x");
    assert_eq!(mode("/usr/bin/holdfastd"), "lrwxrwxrwx");
    for path in [
        "/etc/holdfast/holdfast.toml",
        "/usr/lib/systemd/system/holdfast.service",
        "/usr/lib/systemd/system/holdfast-wait@.service",
        "/usr/share/man/man1/holdfast.1.gz",
        "/usr/share/man/man1/holdfast-cluster-create.1.gz",
        "/usr/share/man/man5/holdfast.toml.5.gz",
        "/usr/share/bash-completion/completions/holdfast",
        "/usr/share/zsh/site-functions/_holdfast",
        "/usr/share/fish/vendor_completions.d/holdfast.fish",
        "/usr/share/doc/holdfast/copyright",
        "/usr/share/doc/holdfast/changelog.Debian.gz",
        "/usr/share/doc/holdfast/third-party-notices.gz",
        "/usr/share/doc/holdfast/guide/README.md",
        "/usr/share/doc/holdfast/guide/commands/create.md",
        "/usr/share/doc/holdfast/guide/prometheus/holdfast.rules.yml",
    ] {
        assert_eq!(mode(path), "-rw-r--r--", "{path}");
    }
    assert!(files.iter().any(|(_, path)| path.starts_with("/usr/lib/udev/rules.d/")));

    // The others have the same.
    let deb: BTreeSet<&str> = files.iter().map(|(_, path)| path.as_str()).collect();
    let rpm = "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]";
    let rpm = done(Command::new("rpm").args(["-qp", "--qf", rpm]).arg(&packages.rpm));
    let mut in_rpm = BTreeSet::new();
    for line in rpm.lines().filter(|line| !line.starts_with('d')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[0], words[1]), (mode(words[2]), "root/root"), "{line}");
        in_rpm.insert(words[2]);
    }
    assert_eq!(in_rpm, deb);
    let tar = done(Command::new("tar").arg("tf").arg(&packages.tar));
    let in_tar = tar.lines().filter(|path| !path.ends_with('/'));
    let in_tar = in_tar.filter_map(|path| path.split_once("/tree").map(|(_, path)| path));
    assert_eq!(in_tar.collect::<BTreeSet<_>>(), deb);
}

/// The targets of the links of a page that are no addresses, without what is behind `#`.
fn relative_links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let paths = targets.filter_map(|(target, _)| target.split('#').next());
    paths.filter(|path| !path.is_empty() && !path.contains(':') && !path.contains(' ')).collect()
}

#[test]
fn what_a_page_of_the_packages_links_to_is_there() {
    let Some(packages) = packages() else { return };
    let root = tempfile::tempdir().unwrap();
    done(Command::new("dpkg-deb").arg("-x").arg(&packages.deb).arg(root.path()));
    let doc = root.path().join("usr/share/doc/holdfast");
    let mut pages = 0;
    let mut missing = Vec::new();
    for page in done(Command::new("find").arg(&doc).args(["-name", "*.md"])).lines() {
        pages += 1;
        let text = fs::read_to_string(page).unwrap();
        for link in relative_links(&text) {
            if !Path::new(page).with_file_name("").join(link).exists() {
                missing.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(pages > 70, "{pages}");
    assert_eq!(missing, [""; 0]);
}

#[test]
fn fields_of_the_deb() {
    let Some(packages) = packages() else { return };
    let root = tempfile::tempdir().unwrap();
    done(Command::new("dpkg-deb").arg("-R").arg(&packages.deb).arg(root.path()));
    let control = root.path().join("DEBIAN");
    let configs = fs::read_to_string(control.join("conffiles")).unwrap();
    assert_eq!(configs, "/etc/holdfast/holdfast.toml\n");
    done(Command::new("md5sum").args(["-c", "DEBIAN/md5sums"]).current_dir(root.path()));
    for script in ["postinst", "prerm", "postrm"] {
        done(Command::new("sh").arg("-n").arg(control.join(script)));
    }
    // What Debian's own tool finds that the program is linked to.
    if there(&["dpkg-shlibdeps"]) {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("debian")).unwrap();
        fs::write(
            source.path().join("debian/control"),
            "Source: x\n\nPackage: x\nArchitecture: any\n",
        )
        .unwrap();
        let mut tool = Command::new("dpkg-shlibdeps");
        tool.arg("-O").arg(root.path().join("usr/bin/holdfast")).current_dir(source.path());
        let said = done(&mut tool);
        let theirs = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends=")).unwrap();
        let ours = done(Command::new("dpkg-deb").arg("-f").arg(&packages.deb).arg("Depends"));
        assert_eq!(ours.trim(), theirs);
    }
    if there(&["lintian"]) {
        let mut lintian = Command::new("lintian");
        lintian.args(["--allow-root", "--fail-on", "error"]).arg(&packages.deb);
        done(&mut lintian);
    }
}

/// `dpkg` for a machine below a directory, whose scripts are told so.
struct ScratchDebian {
    root: TempDir,
}

impl ScratchDebian {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let admin = root.path().join("var/lib/dpkg");
        for dir in ["info", "updates", "triggers", "parts"] {
            fs::create_dir_all(admin.join(dir)).unwrap();
        }
        fs::write(admin.join("status"), "").unwrap();
        Self { root }
    }

    fn dpkg(&self, words: &[&str], package: &Path) -> String {
        // Only root can give files to root; fakeroot makes dpkg believe it.
        let mut dpkg = Command::new(if is_root() { "env" } else { "fakeroot" });
        dpkg.arg("dpkg").arg(format!("--root={}", self.root.path().display()));
        dpkg.args(["--force-script-chrootless", "--force-depends", "--force-not-root"]);
        dpkg.args(["--log=/dev/null"]).args(words).arg(package);
        done(dpkg.env("PATH", std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin"))
    }

    fn is(&self, path: &str) -> bool {
        self.root.path().join(path).symlink_metadata().is_ok()
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The paths of everything that has the name of the project, or lies below.
    fn left(&self) -> Vec<String> {
        let found = done(Command::new("find").arg(".").current_dir(self.root.path()));
        let admin = |line: &str| line.starts_with("./var/lib/dpkg/");
        let mut left: Vec<_> = found
            .lines()
            .filter(|line| line.contains("holdfast") && !admin(line))
            .map(str::to_owned)
            .collect();
        left.sort();
        left
    }
}

const STATE: [&str; 9] = [
    "identity/key.pem",
    "resources/1.state",
    "health/1.state",
    "meta/1.meta",
    "meta/1.checksums",
    "logpeers/1/a.note",
    "attachments/a.state",
    "mirrors/1/mirror.state",
    "watched.state",
];

/// The daemon of a package in a scratch directory; ended with this.
struct Daemon {
    process: Child,
    program: PathBuf,
    dir: TempDir,
}

impl Daemon {
    fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.args(["daemon", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(dir.path().join("state")).arg("--socket").arg(dir.path().join("socket"));
        command.args(["--config", "/dev/null"]).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let daemon = Self { process, program: program.to_owned(), dir };
        let limit = Instant::now() + Duration::from_secs(60);
        while !daemon.command(&["status"]).output().unwrap().status.success() {
            assert!(Instant::now() < limit, "the daemon does not answer");
            thread::sleep(Duration::from_millis(50)); // bounded poll
        }
        daemon
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(self.dir.path().join("socket")).args(words);
        command
    }

    /// What it keeps of a resource that is created so.
    fn state_of(&self, name: &str, more: &[&str]) -> String {
        let path = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let disk = path(&format!("{name}.img"));
        for file in [&disk, &path("spare")] {
            fs::File::create(file).unwrap().set_len(64 << 20).unwrap();
        }
        let more: Vec<_> = more.iter().map(|word| word.replace("DIR", &path(""))).collect();
        let more: Vec<_> = more.iter().map(String::as_str).collect();
        done(&mut self.command(&[&["create", name, "--disk", &disk], &more[..]].concat()));
        let found = fs::read_dir(self.dir.path().join("state/resources")).unwrap();
        // What the daemon is just writing may have its name by now.
        let mut states = found.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
        let name = format!("\"{name}\"");
        states.find(|state| state.contains(&name)).expect("its state is there")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// States of resources as the daemon writes them.
struct States {
    plain: String,
    journal: String,
    spare: String,
}

fn states() -> &'static States {
    static STATES: OnceLock<States> = OnceLock::new();
    STATES.get_or_init(|| {
        let packages = packages().unwrap();
        let unpacked = tempfile::tempdir().unwrap();
        done(Command::new("dpkg-deb").arg("-x").arg(&packages.deb).arg(unpacked.path()));
        let daemon = Daemon::start(&unpacked.path().join("usr/bin/holdfast"));
        let journal = ["--journal", "DIR/j", "--journal-size", "64M"];
        let states = States {
            plain: daemon.state_of("plain", &[]),
            journal: daemon.state_of("journal", &journal),
            spare: daemon.state_of("spare", &["--spare", "DIR/spare"]),
        };
        assert!(states.journal.contains("\"journal\": {"), "{}", states.journal);
        assert!(states.spare.contains("\"spares\": ["), "{}", states.spare);
        states
    })
}

#[test]
fn a_deb_is_installed_removed_and_purged() {
    if !there(&["dpkg", "deb-systemd-helper"]) || !(is_root() || there(&["fakeroot"])) {
        return;
    }
    let Some(packages) = packages() else { return };
    let debian = ScratchDebian::new();
    debian.dpkg(&["-i"], &packages.deb);
    let wanted = "etc/systemd/system/multi-user.target.wants/holdfast.service";
    assert!(debian.is(wanted), "the service is not enabled: {:?}", debian.left());
    assert!(!debian.is("var/lib/holdfast"));
    let version = done(Command::new(debian.root.path().join("usr/bin/holdfast")).arg("--version"));
    assert!(version.starts_with("holdfast "), "{version}");

    let config = "etc/holdfast/holdfast.toml";
    debian.put(config, "# mine\n");
    for path in STATE {
        debian.put(&format!("var/lib/holdfast/{path}"), &states().plain);
    }
    // Installed again, as in an upgrade: what is the administrator's stays.
    debian.dpkg(&["--force-confold", "-i"], &packages.deb);
    let kept = || fs::read_to_string(debian.root.path().join(config)).unwrap();
    assert_eq!(kept(), "# mine\n");

    debian.dpkg(&["-r"], Path::new("holdfast"));
    assert_eq!(kept(), "# mine\n");
    assert!(!debian.is("usr/bin/holdfast") && !debian.is("usr/share/doc/holdfast"));
    assert!(STATE.iter().all(|path| debian.is(&format!("var/lib/holdfast/{path}"))));

    // Somebody's disk lies there, too, and keys.
    debian.put("var/lib/holdfast/disks/db.img", "data");
    debian.put("etc/holdfast/nbd/server-key.pem", "key");
    debian.put("etc/holdfast/holdfast.toml.dpkg-dist", "");
    let said = debian.dpkg(&["-P"], Path::new("holdfast"));
    assert!(said.contains("there are files of others in it"), "{said}");
    let kept = [
        "./etc/holdfast",
        "./etc/holdfast/nbd",
        "./etc/holdfast/nbd/server-key.pem",
        "./var/lib/holdfast",
        "./var/lib/holdfast/disks",
        "./var/lib/holdfast/disks/db.img",
    ];
    assert_eq!(debian.left(), kept);
}

#[test]
fn purging_takes_the_state_unless_data_depend_on_it() {
    if !there(&["dpkg", "deb-systemd-helper"]) || !(is_root() || there(&["fakeroot"])) {
        return;
    }
    let Some(packages) = packages() else { return };
    let debian = ScratchDebian::new();
    let States { plain, journal, spare } = states();
    let damaged = plain.replace("\"up\": true", "\"up\": false");
    let newer = plain.replace("holdfast-resource 1 ", "holdfast-resource 2 ");
    let with = "a resource has a journal or spares";
    let unclear = "is damaged or of another version";
    for (state, why) in [
        (journal, with),
        (spare, with),
        (&damaged, unclear),
        (&newer, unclear),
        (&String::new(), unclear),
    ] {
        assert_ne!(state, plain);
        debian.dpkg(&["-i"], &packages.deb);
        for path in STATE {
            debian.put(&format!("var/lib/holdfast/{path}"), plain);
        }
        debian.put("var/lib/holdfast/resources/2.state", state);
        let said = debian.dpkg(&["-P"], Path::new("holdfast"));
        assert!(said.contains(why), "{said}");
        assert!(STATE.iter().all(|path| debian.is(&format!("var/lib/holdfast/{path}"))), "{why}");
        assert!(!debian.is("etc/holdfast"));
    }

    debian.dpkg(&["-i"], &packages.deb);
    fs::remove_file(debian.root.path().join("var/lib/holdfast/resources/2.state")).unwrap();
    debian.dpkg(&["-P"], Path::new("holdfast"));
    assert_eq!(debian.left(), [""; 0]);
}

/// A directory in which scripts can run: a shell and `mv`, and their libraries.
fn with_shell(root: &Path) {
    for program in ["/bin/sh", "/bin/mv"] {
        let needs = done(Command::new("ldd").arg(program));
        for path in needs.split_whitespace().chain([program]) {
            if path.starts_with('/') {
                let target = root.join(path.trim_start_matches('/'));
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(path, &target).unwrap();
            }
        }
    }
}

#[test]
fn an_rpm_is_installed_upgraded_and_removed() {
    if !is_root() {
        eprintln!("SKIPPED: rpm --root needs root");
        return;
    }
    let Some(packages) = packages() else { return };
    let scripts = done(Command::new("rpm").args(["-qp", "--scripts"]).arg(&packages.rpm));
    for kind in ["postinstall", "preuninstall", "postuninstall", "posttrans"] {
        assert!(
            scripts.contains(&format!("{kind} scriptlet (using /bin/sh)")),
            "{kind}: {scripts}"
        );
    }
    assert!(!scripts.contains("@FUNCTIONS@"));
    let needs = done(Command::new("rpm").args(["-qp", "--requires"]).arg(&packages.rpm));
    assert!(needs.contains("libc.so.6(GLIBC_2."), "{needs}");

    let root = tempfile::tempdir().unwrap();
    with_shell(root.path());
    let rpm = |words: &[&str], package: &Path| {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(root.path()).args(["--dbpath", "/var/lib/rpm"]).args(words);
        done(rpm.arg(package))
    };
    rpm(&["--initdb"], Path::new("--quiet"));
    rpm(&["-i", "--nodeps"], &packages.rpm);
    assert!(root.path().join("usr/bin/holdfastd").is_file());
    assert_eq!(rpm(&["-V", "--nodeps"], Path::new("holdfast")), "");
    let config = root.path().join("etc/holdfast/holdfast.toml");
    fs::write(&config, "# mine\n").unwrap();
    let state = root.path().join("var/lib/holdfast/resources/1.state");
    fs::create_dir_all(state.parent().unwrap()).unwrap();
    fs::write(&state, &states().plain).unwrap();
    rpm(&["-U", "--nodeps", "--force"], &packages.rpm);
    assert_eq!(fs::read_to_string(&config).unwrap(), "# mine\n");
    rpm(&["-e"], Path::new("holdfast"));
    assert!(!root.path().join("usr/bin/holdfast").exists());
    assert!(!root.path().join("usr/share/doc/holdfast").exists());
    assert!(state.exists(), "the state is gone");
    assert!(root.path().join("etc/holdfast/holdfast.toml.rpmsave").exists());
    // Another installation takes it up, unless somebody has said something since.
    rpm(&["-i", "--nodeps"], &packages.rpm);
    assert_eq!(fs::read_to_string(&config).unwrap(), "# mine\n");
    rpm(&["-e"], Path::new("holdfast"));
    fs::write(&config, "name = \"other\"\n").unwrap();
    rpm(&["-i", "--nodeps"], &packages.rpm);
    assert_eq!(fs::read_to_string(&config).unwrap(), "name = \"other\"\n");
}

#[test]
fn the_tar_file_installs_upgrades_and_uninstalls() {
    let Some(packages) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    done(Command::new("tar").arg("xf").arg(&packages.tar).arg("-C").arg(dir.path()));
    let name = packages.tar.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz");
    let unpacked = dir.path().join(name);
    let install = || done(Command::new(unpacked.join("install.sh")).arg("--root").arg(&root));
    install();
    let program = root.join("usr/bin/holdfast");
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o7777, 0o755);
    let files = deb_files(&packages.deb);
    assert!(files.iter().all(|(_, path)| root.join(&path[1..]).symlink_metadata().is_ok()));

    // A newer version, which has one file less, over a configuration that was changed.
    let config = root.join("etc/holdfast/holdfast.toml");
    fs::write(&config, "# mine\n").unwrap();
    let dropped = "usr/share/doc/holdfast/guide/attach.md";
    fs::remove_file(unpacked.join("tree").join(dropped)).unwrap();
    install();
    assert!(!root.join(dropped).exists());
    assert_eq!(fs::read_to_string(&config).unwrap(), "# mine\n");
    assert!(root.join("etc/holdfast/holdfast.toml.new").exists());

    let uninstall = root.join("usr/lib/holdfast/uninstall.sh");
    let copy = dir.path().join("uninstall.sh");
    fs::copy(&uninstall, &copy).unwrap();
    let state = root.join("var/lib/holdfast/resources/1.state");
    fs::create_dir_all(state.parent().unwrap()).unwrap();
    fs::write(&state, &states().plain).unwrap();
    let list = fs::read(root.join("usr/lib/holdfast/installed-files")).unwrap();
    done(Command::new(&uninstall).arg("--root").arg(&root));
    let left = done(Command::new("find").arg(&root).args(["!", "-type", "d"]));
    let mut left: Vec<_> =
        left.lines().map(|path| path.trim_start_matches(root.to_str().unwrap())).collect();
    left.sort_unstable();
    let kept = [
        "/etc/holdfast/holdfast.toml",
        "/etc/holdfast/holdfast.toml.new",
        "/var/lib/holdfast/resources/1.state",
    ];
    assert_eq!(left, kept);

    let again = Command::new(&copy).arg("--root").arg(&root).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("error: holdfast was not removed"), "{}", text(&again));
    fs::create_dir_all(root.join("usr/lib/holdfast")).unwrap();
    fs::write(root.join("usr/lib/holdfast/installed-files"), list).unwrap();
    done(Command::new(&copy).arg("--purge").arg("--root").arg(&root));
    assert_eq!(done(Command::new("find").arg(&root).args(["!", "-type", "d"])), "");
    let wrong = Command::new(unpacked.join("install.sh")).arg("--fast").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

/// Owner, group, mode and path of everything in a directory, links and the directory itself left out.
fn owners(root: &Path) -> Vec<String> {
    let mut find = Command::new("find");
    find.arg(root).args(["-mindepth", "1", "!", "-type", "l", "-printf", "%U:%G %m %y %P\n"]);
    done(&mut find).lines().map(str::to_owned).collect()
}

#[test]
fn what_install_sh_installs_is_roots_whoever_unpacked_it() {
    if !is_root() {
        eprintln!("SKIPPED: only root can give files to others");
        return;
    }
    let Some(packages) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    let unpack =
        "umask 077; tar xf \"$1\" --no-same-permissions -C \"$2\"; chown -Rh 4321:4321 \"$2\"";
    done(Command::new("sh").args(["-c", unpack, "sh"]).arg(&packages.tar).arg(dir.path()));
    let name = packages.tar.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz");
    let unpacked = dir.path().join(name);
    let root = tempfile::tempdir().unwrap();
    let install = || {
        let script = "umask 077; exec \"$1\" --root \"$2\"";
        let mut shell = Command::new("sh");
        done(shell.args(["-c", script, "sh"]).arg(unpacked.join("install.sh")).arg(root.path()));
        for line in owners(root.path()) {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            let program = words[3].starts_with("usr/bin/") || words[3].ends_with("/uninstall.sh");
            let mode = if words[2] == "d" || program { "755" } else { "644" };
            assert_eq!((words[0], words[1]), ("0:0", mode), "{line}");
        }
        let links = ["-type", "l", "!", "-user", "0"];
        assert_eq!(done(Command::new("find").arg(root.path()).args(links)), "");
    };
    install();
    // Neither is what an older installer left to somebody.
    done(Command::new("chown").arg("4321:4321").arg(root.path().join("usr/bin/holdfast")));
    install();
}

#[test]
fn an_installation_that_was_interrupted_is_gone_on_with_or_removed() {
    let Some(packages) = packages() else { return };
    let dir = tempfile::tempdir().unwrap();
    done(Command::new("tar").arg("xf").arg(&packages.tar).arg("-C").arg(dir.path()));
    let name = packages.tar.file_name().unwrap().to_str().unwrap().trim_end_matches(".tar.gz");
    let install = dir.path().join(name).join("install.sh");
    let root = dir.path().join("root");
    // A directory where the manual has to go: the program is there by then.
    let wall = root.join("usr/share/man/man1/holdfast.1.gz");
    fs::create_dir_all(wall.join("x")).unwrap();
    fs::create_dir_all(root.join("usr/share/man/man1/holdfast.1.gz.installing/x")).unwrap();
    let run = || Command::new(&install).arg("--root").arg(&root).output().unwrap();
    assert!(!run().status.success());
    assert!(root.join("usr/bin/holdfast").exists());
    assert!(root.join("usr/lib/holdfast/uninstall.sh").exists());
    fs::remove_dir_all(root.join("usr/share/man")).unwrap();
    let again = run();
    assert!(again.status.success(), "{}", text(&again));
    let uninstall = root.join("usr/lib/holdfast/uninstall.sh");
    done(Command::new(uninstall).arg("--purge").arg("--root").arg(&root));
    assert_eq!(done(Command::new("find").arg(&root).args(["!", "-type", "d"])), "");
    // Over a package it is refused.
    if there(&["dpkg", "deb-systemd-helper"]) && (is_root() || there(&["fakeroot"])) {
        let debian = ScratchDebian::new();
        debian.dpkg(&["-i"], &packages.deb);
        let over = Command::new(&install).arg("--root").arg(debian.root.path()).output().unwrap();
        assert!(text(&over).contains("/usr/bin/holdfast belongs to a package"), "{}", text(&over));
    }
}

/// Runs a line with the functions that the scripts share, and this text as `holdfast`.
fn with_functions(holdfast: &str, line: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    // A process of its own writes it: what this one has open for writing, a program that another test
    // is just starting has open for a moment, too, and then it cannot be run.
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
    let program = dir.path().join("holdfast");
    done(Command::new("sh").args(["-c", write]).arg(&program).arg(holdfast));
    let functions = xtask::root().join("packaging/functions.sh");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("set -e; . {}; {line}", functions.display())]);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    shell.env("PATH", path).env("DIR", dir.path()).output().unwrap()
}

#[test]
fn what_clients_have_open_is_in_use_without_systemd_too() {
    let lines = "echo 'resource=web node=a role=Primary open=2 suspended=-'\n\
                 echo 'resource=db node=a role=Primary open=1 suspended=-'\n\
                 echo 'resource=x node=a role=Secondary open=0 suspended=-'";
    let functions = "used_devices() { echo /dev/holdfast/db; }; sleep() { :; }; refuse_while_used";
    let said = with_functions(lines, functions);
    assert_eq!(said.status.code(), Some(1));
    let due = "error: holdfast was not removed: in use: /dev/holdfast/db web (2 have it open)\n";
    assert!(text(&said).starts_with(due), "{}", text(&said));
    let free = with_functions("exit 1", "used_devices() { :; }; refuse_while_used");
    assert!(free.status.success(), "{}", text(&free));
    for script in ["deb/prerm", "tar/uninstall.sh", "rpm/holdfast.spec"] {
        let script = fs::read_to_string(xtask::root().join("packaging").join(script)).unwrap();
        let line = script.lines().find(|line| line.contains("refuse_while_used")).unwrap();
        assert!(!line.contains("systemd_runs"), "{line}");
    }
    let table = "UNIX_SOCKETS=$DIR/unix; echo '0: 00000002 00000000 00010000 0001 01 77 \
                 /run/holdfast/control.sock' > $UNIX_SOCKETS;";
    assert!(with_functions("", &format!("{table} daemon_listens")).status.success());
    let other = table.replace("00010000", "00000000");
    assert!(!with_functions("", &format!("{other} daemon_listens")).status.success());
}

#[test]
fn a_loop_device_on_a_device_uses_it() {
    if !is_root() || !there(&["losetup", "wipefs"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let attach = |path: &Path| {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(path).output().unwrap();
        made.status.success().then(|| text(&made).trim().to_owned())
    };
    let Some(below) = attach(&file) else {
        eprintln!("SKIPPED: there are no loop devices here");
        return;
    };
    let above = attach(Path::new(&below)).unwrap();
    let used = || with_functions("", &format!("is_used {below}")).status.success();
    let while_used = used();
    done(Command::new("losetup").args(["-d", &above]));
    let afterwards = used();
    done(Command::new("losetup").args(["-d", &below]));
    assert!(while_used && !afterwards, "{while_used} {afterwards}");
}

#[test]
fn the_same_sources_give_the_same_packages() {
    let Some(packages) = packages() else { return };
    let root = tempfile::tempdir().unwrap();
    done(Command::new("dpkg-deb").arg("-x").arg(&packages.deb).arg(root.path()));
    let program = root.path().join("usr/bin/holdfast");
    let again = root.path().join("again");
    let words = ["package", "all", "--quick", "--glibc", "9", "--binary"];
    done(xtask(&words).arg(program).arg("--out").arg(&again));
    for made in [&packages.deb, &packages.rpm, &packages.tar] {
        let other = again.join(made.file_name().unwrap());
        assert!(fs::read(made).unwrap() == fs::read(&other).unwrap(), "{}", other.display());
    }
    assert!(packages.dir.path().exists());
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let wrong = xtask(&["package", "apk"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong).contains("usage: cargo xtask package"), "{}", text(&wrong));
    if !there(&["strip", "objdump"]) {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let mut old = xtask(&["package", "tar", "--glibc", "2.3", "--binary"]);
    let old = old.arg(env!("CARGO_BIN_EXE_xtask")).arg("--out").arg(out.path()).output().unwrap();
    assert_eq!(old.status.code(), Some(1));
    assert!(text(&old).contains("the program needs glibc 2."), "{}", text(&old));
}
