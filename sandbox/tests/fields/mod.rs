//! Fields of the specification that are about the process and its mounts, one by one.

mod network_devices;

use std::fs;
use std::io::Read;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder, Spec};
use serde_json::{Value, json};
use strata_sandbox::spec_default::{Defaults, UserNamespace, spec_default};
use strata_sandbox::userns::IdMaps;
use strata_sandbox::{Exec, Identity, Landlock, Listener, Seccomp, Stdio, exec};

use super::support::{Container, rootfs};
use super::walls::Case;

/// The tests, and what they miss here.
pub(super) fn cases() -> Vec<Case> {
    let no_numa = (!Path::new("/proc/self/numa_maps").exists()).then(|| "needs a kernel with NUMA".to_owned());
    let labels = Path::new("/sys/module/apparmor").exists() || Path::new("/sys/fs/selinux/enforce").exists();
    let labels = labels.then(|| "needs a kernel without security modules".to_owned());
    let own: Vec<Case> = vec![
        ("fields_scheduler_and_io_priority", scheduler_and_io_priority, None),
        ("fields_memory_policy", memory_policy, no_numa),
        ("fields_affinity_of_an_exec", affinity_of_an_exec, None),
        ("fields_labels_without_their_module_are_refused", labels_are_refused, labels),
        ("fields_console_size", console_size, None),
        ("fields_recursive_mount_options", recursive_mount_options, None),
        ("fields_mapped_owners_of_a_mount", mapped_owners_of_a_mount, None),
        ("fields_tmpcopyup", tmpcopyup, None),
        ("fields_a_joined_user_namespace", a_joined_user_namespace, None),
        ("fields_a_joined_mount_namespace", a_joined_mount_namespace, None),
        ("fields_names_and_personality", names_and_personality, None),
        ("fields_devices_of_all_types", devices_of_all_types, None),
        ("fields_root_propagation", root_propagation, None),
        ("fields_user", user, None),
        ("fields_that_need_a_namespace_are_refused_without", fields_that_need_a_namespace, None),
        ("fields_that_cannot_be_are_named", fields_that_cannot_be_are_named, None),
    ];
    [own, network_devices::cases()].concat()
}

fn patched(script: &str, patch: Value) -> String {
    patched_at(rootfs().path(), script, patch)
}

fn patched_at(root: &Path, script: &str, patch: Value) -> String {
    Container { patch, ..Container::shell(root, script) }.text()
}

fn refused(patch: Value) -> String {
    let root = rootfs();
    Container { patch, ..Container::new(root.path(), &["true"]) }.run().unwrap_err().to_string()
}

fn with_mounts(root: &Path, script: &str, mounts: Vec<Mount>) -> String {
    let mut container = Container::shell(root, script);
    container.defaults.mounts = mounts;
    container.text()
}

fn mount(kind: &str, source: &Path, target: &str, options: &[&str]) -> MountBuilder {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().typ(kind).source(source).destination(target).options(options)
}

fn scheduler_and_io_priority() {
    // The fields 19 and 41 of proc(5): nice value and policy.
    let script = "cut -d' ' -f19,41 /proc/self/stat; busybox ionice -p $$";
    let patch = json!({"process": {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 7},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
    }});
    assert_eq!(patched(script, patch), "7 3\nbest-effort: prio 6");
    let patch =
        json!({"process": {"scheduler": {"policy": "SCHED_IDLE"}, "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}}});
    // The nice value stays what it was.
    let text = patched(script, patch);
    assert!(text.contains(" 5\nidle"), "{text}");
}

fn memory_policy() {
    let patch =
        json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}}});
    let text = patched("head -n 1 /proc/self/numa_maps", patch);
    assert!(text.contains("bind=static:0"), "{text}");
    let error = refused(json!({"linux": {"memoryPolicy": {"mode": "MPOL_BIND"}}}));
    assert!(error.contains("linux.memoryPolicy"), "{error}");
}

fn affinity_of_an_exec() {
    let root = rootfs();
    let running = Container::new(root.path(), &["sleep", "100"]).start(Stdio::Inherit).unwrap();
    let in_container = |affinity: Value| {
        let args = ["/bin/sh", "-c", "grep Cpus_allowed_list /proc/self/status"].map(str::to_owned).to_vec();
        let mut spec = serde_json::to_value(spec_default(Defaults { args, ..Defaults::default() }).unwrap()).unwrap();
        spec["process"]["execCPUAffinity"] = affinity;
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let (stdio, pipes) = Stdio::pipes().unwrap();
        let (seccomp, landlock) = (Seccomp::Default, Landlock::Auto);
        let added = exec(Exec {
            spec: &spec,
            init: &running,
            user: None,
            groups: &[],
            stdio,
            seccomp,
            landlock,
            listener: Listener::Agent,
            identity: Identity::default(),
            inherited: strata_sandbox::Inherited::default(),
            cgroup: None,
        })
        .unwrap();
        let mut text = String::new();
        fs::File::from(pipes.stdout).read_to_string(&mut text).unwrap();
        assert_eq!(added.wait().unwrap().code(), 0);
        text.split_whitespace().last().unwrap().to_owned()
    };
    assert_eq!(in_container(json!({"initial": "0", "final": "0"})), "0");
    // What becomes of the first one in the cgroup is the kernel's to say.
    assert!(["0", &in_container(json!({}))].contains(&in_container(json!({"initial": "0"})).as_str()));
    running.signal(9).unwrap();
    running.wait().unwrap();
}

fn labels_are_refused() {
    let error = refused(json!({"process": {"apparmorProfile": "docker-default"}}));
    assert!(error.ends_with("process.apparmorProfile: AppArmor is not enabled on this host"), "{error}");
    let error = refused(json!({"process": {"selinuxLabel": "system_u:system_r:container_t:s0"}}));
    assert!(error.ends_with("process.selinuxLabel: SELinux is not enabled on this host"), "{error}");
    let error = refused(json!({"linux": {"mountLabel": "system_u:object_r:container_file_t:s0"}}));
    assert!(error.ends_with("linux.mountLabel: SELinux is not enabled on this host"), "{error}");
    assert_eq!(patched("echo up", json!({"process": {"apparmorProfile": "unconfined"}})), "up");
}

fn console_size() {
    let root = rootfs();
    let mut container = Container::shell(root.path(), "stty size");
    container.defaults.terminal = true;
    container.patch = json!({"process": {"consoleSize": {"height": 33, "width": 77}}});
    let running = container.start(Stdio::Terminal { size: None }).unwrap();
    let mut text = [0; 64];
    let console = fs::File::from(running.console().unwrap().try_clone_to_owned().unwrap());
    let length = (&console).read(&mut text).unwrap();
    assert_eq!(String::from_utf8_lossy(&text[..length]).trim(), "33 77");
    assert_eq!(running.wait().unwrap().code(), 0);
}

fn recursive_mount_options() {
    let root = rootfs();
    let source = tempfile::tempdir().unwrap();
    let below = source.path().join("below");
    fs::create_dir(&below).unwrap();
    rustix::mount::mount("tmpfs", &below, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    // What each set of options leaves of the mount and of what is mounted below it.
    let script = "flags() { awk -v at=$1 '$5 == at { print $6 }' /proc/self/mountinfo; }; \
                  echo $(flags /data) $(flags /data/below); \
                  touch /data/x 2>/dev/null && echo w; touch /data/below/x 2>/dev/null && echo w; true";
    let text = |options: &[&str]| {
        with_mounts(root.path(), script, vec![mount("bind", source.path(), "/data", options).build().unwrap()])
    };
    let both = |options: &[&str], flag: &str| {
        let text = text(options);
        let line = text.lines().next().unwrap().to_owned();
        let has: Vec<bool> = line.split(' ').map(|one| one.split(',').any(|word| word == flag)).collect();
        (has, text.lines().skip(1).count())
    };
    assert_eq!(both(&["rbind", "ro"], "ro"), (vec![true, false], 1));
    assert_eq!(both(&["rbind", "rro"], "ro"), (vec![true, true], 0));
    assert_eq!(both(&["rbind", "rro", "rw"], "ro"), (vec![true, true], 0));
    for (option, flag) in [
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnoatime", "noatime"),
        ("rnodiratime", "nodiratime"),
    ] {
        assert_eq!(both(&["rbind", option], flag).0, [true, true], "{option}");
    }
    let has = both(&["rbind", "rnosymfollow"], "nosymfollow").0;
    assert_eq!(has, [true, true]);
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).unwrap();
}

fn mapping(container: u32, host: u32, size: u32) -> LinuxIdMapping {
    LinuxIdMappingBuilder::default().container_id(container).host_id(host).size(size).build().unwrap()
}

fn mapped_owners_of_a_mount() {
    let root = rootfs();
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    fs::write(&file, "").unwrap();
    chown(&file, Some(1000), Some(2000)).unwrap();
    let bind = mount("bind", source.path(), "/data", &["rbind", "idmap"])
        .uid_mappings(vec![mapping(1000, 5, 1)])
        .gid_mappings(vec![mapping(2000, 6, 1)])
        .build()
        .unwrap();
    assert_eq!(with_mounts(root.path(), "stat -c %u:%g /data/file", vec![bind]), "5:6");
    assert_eq!(fs::metadata(&file).map(|stat| std::os::unix::fs::MetadataExt::uid(&stat)).unwrap(), 1000);
    let half = json!({"mounts": [{
        "destination": "/data", "type": "bind", "source": source.path(), "options": ["bind"],
        "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
    }]});
    let error = refused(half);
    assert!(error.contains("uidMappings and gidMappings of the mount on /data belong together"), "{error}");
}

fn tmpcopyup() {
    let root = rootfs();
    fs::write(root.path().join("etc/kept"), "of the image").unwrap();
    let options = ["tmpcopyup", "size=1m", "nosuid"];
    let copied = || mount("tmpfs", Path::new("tmpfs"), "/etc", &options).build().unwrap();
    let script = "cat /etc/kept; echo; echo new > /etc/new; grep -c ' /etc ' /proc/self/mounts";
    assert_eq!(with_mounts(root.path(), script, vec![copied()]), "of the image\n1");
    assert!(!root.path().join("etc/new").exists());
    // More than fits is a failed start, not half a folder.
    fs::write(root.path().join("etc/large"), vec![1; 2 << 20]).unwrap();
    let mut container = Container::new(root.path(), &["true"]);
    container.defaults.mounts = vec![copied()];
    let error = container.run().unwrap_err().to_string();
    assert!(error.contains("copy /etc into a memory filesystem"), "{error}");
    fs::remove_file(root.path().join("etc/large")).unwrap();
    // Owners are those that the container's ids stand for.
    let mut container = Container::shell(root.path(), "stat -c %u /etc/kept");
    container.defaults.mounts = vec![copied()];
    container.defaults.user_namespace = UserNamespace::Own(IdMaps::block(0x3000_0000, 65536));
    assert_eq!(container.text(), "0");
}

fn a_joined_user_namespace() {
    let root = rootfs();
    let mut first = Container::new(root.path(), &["sleep", "100"]);
    first.defaults.user_namespace = UserNamespace::Own(IdMaps::block(0x3000_0000, 65536));
    let first = first.start(Stdio::Inherit).unwrap();
    let path = |kind: &str| PathBuf::from(format!("/proc/{}/ns/{kind}", first.pid()));
    let root = rootfs();
    let mut spec = serde_json::to_value(spec_default(Defaults::default()).unwrap()).unwrap();
    let mut namespaces = spec["linux"]["namespaces"].take();
    let list = namespaces.as_array_mut().unwrap();
    list.retain(|namespace| namespace["type"] != "network");
    list.push(json!({"type": "user", "path": path("user")}));
    list.push(json!({"type": "network", "path": path("net")}));
    let script = "readlink /proc/self/ns/user; readlink /proc/self/ns/net; id -u; stat -c %u /etc/passwd; echo $$; \
                  touch /made && stat -c %u /made; hostname";
    let text =
        Container { patch: json!({"linux": {"namespaces": namespaces}}), ..Container::shell(root.path(), script) }
            .text();
    let link = |kind: &str| fs::read_link(path(kind)).unwrap().display().to_string();
    let expected = format!("{}\n{}\n0\n0\n1\n0\nbox", link("user"), link("net"));
    assert_eq!(text, expected);
    first.signal(9).unwrap();
    first.wait().unwrap();
}

fn a_joined_mount_namespace() {
    let root = rootfs();
    fs::write(root.path().join("of-the-container"), "").unwrap();
    let mut other = std::process::Command::new("busybox")
        .args(["unshare", "-m", "--propagation", "private", "busybox", "sleep", "100"])
        .spawn()
        .unwrap();
    let path = PathBuf::from(format!("/proc/{}/ns/mnt", other.id()));
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    while fs::read_link(&path).unwrap() == own {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let joined = fs::read_link(&path).unwrap();
    let namespaces = |path: &Path| {
        let mut spec = serde_json::to_value(spec_default(Defaults::default()).unwrap()).unwrap();
        let mut namespaces = spec["linux"]["namespaces"].take();
        let list = namespaces.as_array_mut().unwrap();
        list.iter_mut().filter(|it| it["type"] == "mount").for_each(|it| it["path"] = json!(path));
        json!({"linux": {"namespaces": namespaces}})
    };
    let text = patched_at(root.path(), "readlink /proc/self/ns/mnt; ls /of-the-container", namespaces(&path));
    assert_eq!(text, format!("{}\n/of-the-container", joined.display()));
    // As with runc and crun, who was there before sees the container's root now.
    assert!(Path::new(&format!("/proc/{}/root/of-the-container", other.id())).exists());
    other.kill().unwrap();
    other.wait().unwrap();
    let error = refused(namespaces(Path::new("/proc/self/ns/mnt")));
    assert!(error.contains("is the mount namespace of the host"), "{error}");
    assert!(Path::new("/proc/self").exists(), "our own root is still there");
}

fn names_and_personality() {
    let patch = json!({"domainname": "home.example", "linux": {"personality": {"domain": "LINUX32"}}});
    let text = patched("hostname; cat /proc/sys/kernel/domainname; uname -m", patch);
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { text.lines().last().unwrap() };
    assert_eq!(text, format!("box\nhome.example\n{machine}"));
    let flags = json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE", "STICKY_TIMEOUTS"]});
    assert_eq!(patched("cat /proc/self/personality", json!({"linux": {"personality": flags}})), "04040000");
}

fn fields_that_need_a_namespace() {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let id = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    for (field, mut patch) in [
        ("hostname needs a uts namespace", json!({})),
        ("domainname needs a uts namespace", json!({"hostname": "", "domainname": "x"})),
        ("uidMappings needs a user namespace", json!({"hostname": "", "linux": {"uidMappings": id}})),
        ("timeOffsets needs", json!({"hostname": "", "linux": {"timeOffsets": {"boottime": {"secs": 5}}}})),
    ] {
        patch["linux"]["namespaces"] = json!([{"type": "mount"}]);
        let error = refused(patch);
        assert!(error.contains(field), "{field}: {error}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), host);
    for (error, more) in [
        ("pid is listed twice", json!([{"type": "mount"}, {"type": "pid"}, {"type": "pid"}])),
        ("is not an absolute path", json!([{"type": "mount"}, {"type": "ipc", "path": "proc/self/ns/ipc"}])),
        (
            "\"/proc/self/ns/net\" is no ipc namespace",
            json!([{"type": "mount"}, {"type": "ipc", "path": "/proc/self/ns/net"}]),
        ),
        ("\"/dev/null\" is no ipc namespace", json!([{"type": "mount"}, {"type": "ipc", "path": "/dev/null"}])),
    ] {
        let found = refused(json!({"hostname": "", "linux": {"namespaces": more}}));
        assert!(found.contains(error), "{error}: {found}");
    }
}

fn devices_of_all_types() {
    let patch = json!({"linux": {"devices": [
        {"path": "/dev/one", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 33, "gid": 40},
        {"path": "/dev/deep/two", "type": "u", "major": 1, "minor": 3},
        {"path": "/dev/three", "type": "b", "major": 7, "minor": 99},
        {"path": "/dev/four", "type": "p", "fileMode": 0o600, "major": 0, "minor": 0},
        {"path": "/srv/five", "type": "p", "major": 0, "minor": 0},
    ]}});
    let script = "stat -c '%F %t:%T %a %u:%g' /dev/one /dev/deep/two /dev/three /dev/four /srv/five";
    let expected = "character special file 1:5 640 33:40\ncharacter special file 1:3 666 0:0\n\
                    block special file 7:63 666 0:0\nfifo 0:0 600 0:0\nfifo 0:0 666 0:0";
    assert_eq!(patched(script, patch), expected);
    let error = refused(json!({"linux": {"devices": [{"path": "/dev/x", "type": "a", "major": 1, "minor": 5}]}}));
    assert!(error.contains("device of type \"a\""), "{error}");
}

fn root_propagation() {
    let script = "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo";
    for (propagation, expected) in
        [("private", "-"), ("rshared", "shared:"), ("rslave", "-"), ("runbindable", "unbindable")]
    {
        let text = patched(script, json!({"linux": {"rootfsPropagation": propagation}}));
        assert!(text.starts_with(expected), "{propagation}: {text}");
    }
    let error = refused(json!({"linux": {"rootfsPropagation": "sideways"}}));
    assert!(error.contains("rootfsPropagation"), "{error}");
}

fn user() {
    let patch = json!({"process": {"user": {"uid": 33, "gid": 34, "umask": 0o27, "additionalGids": [40, 41]}}});
    let text = patched("id -u; id -g; id -G; umask; echo $HOME", patch);
    assert_eq!(text, "33\n34\n34 40 41\n0027\n/home/web");
}

fn fields_that_cannot_be_are_named() {
    for (patch, field) in [
        (json!({"linux": {"intelRdt": {"closID": "x"}}}), "linux.intelRdt"),
        (json!({"linux": {"personality": {"domain": "LINUX", "flags": ["x"]}}}), "linux.personality.flags: \"x\""),
        (json!({"linux": {"resources": {"unified": {"memory.nothing": "1"}}}}), "memory.nothing"),
        (json!({"linux": {"resources": {"unified": {"none.max": "1"}}}}), "none.max of resources.unified"),
        (json!({"linux": {"resources": {"blockIO": {"leafWeight": 20}}}}), "an I/O leaf weight"),
        (json!({"linux": {"resources": {"memory": {"useHierarchy": false}}}}), "without those of groups below"),
        (json!({"process": {"scheduler": {"policy": "SCHED_FIFO"}}}), "process.scheduler.priority"),
        (json!({"process": {"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 9}}}), "process.ioPriority"),
        (json!({"linux": {"sysctl": {"kernel.core_pattern": "|/x"}}}), "kernel.core_pattern"),
        (json!({"process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]}}), "above hard limit"),
        (
            json!({"process": {"rlimits": [
                {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
                {"type": "RLIMIT_CORE", "soft": 2, "hard": 2},
            ]}}),
            "RLIMIT_CORE is listed twice",
        ),
        (json!({"process": {"cwd": "relative"}}), "cwd"),
    ] {
        let error = refused(patch);
        assert!(error.contains(field), "{field}: {error}");
    }
}
