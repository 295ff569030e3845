//! The systemd driver where there is a systemd. `tests/vm/run` makes such a machine; what is said to systemd word by word is tested
//! in the harness, against one of our own making.

use std::fs;
use std::path::Path;

use oci_spec::runtime::Spec;
use strata_sandbox::cgroup::CgroupManager;
use strata_sandbox::runtime::{Create, Delete, Inherited, Runtime, resources};
use strata_sandbox::spec_default::{Defaults, spec_default};

use crate::support::rootfs;
use crate::walls::Case;

pub(crate) fn cases() -> Vec<Case> {
    let missing = (!Path::new("/run/systemd/system").is_dir()).then(|| "needs systemd".to_owned());
    vec![("a_scope_of_systemd", a_scope_of_systemd, missing)]
}

fn a_scope_of_systemd() {
    let base = tempfile::tempdir().unwrap();
    let root = rootfs();
    let limits = r#"{"memory": {"limit": 67108864}, "pids": {"limit": 50}, "cpu": {"quota": 50000, "period": 100000}}"#;
    let defaults = Defaults {
        args: ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec(),
        resources: serde_json::from_str(limits).unwrap(),
        ..Defaults::default()
    };
    let mut spec: Spec = spec_default(defaults).unwrap();
    spec.root_mut().as_mut().unwrap().set_path(root.path().to_owned());
    let mut linux = spec.linux().clone().unwrap();
    linux.set_cgroups_path(Some("strata_vm-inner.slice:strata:one".into()));
    spec.set_linux(Some(linux));
    fs::write(base.path().join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();

    let runtime = Runtime::new(base.path().join("state")).with_cgroup_manager(CgroupManager::Systemd);
    let id = "one".parse().unwrap();
    let create =
        || Create { bundle: base.path(), inherited: Inherited::default(), console: None, pidfd: None, pid_file: None };
    let scope = Path::new("/sys/fs/cgroup/strata_vm.slice/strata_vm-inner.slice/strata-one.scope");
    let read = |file: &str| fs::read_to_string(scope.join(file)).unwrap().trim().to_owned();
    // Twice: the first must leave nothing behind.
    for _ in 0..2 {
        let (container, warnings) = runtime.create(&id, create()).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let pid = container.process().unwrap().pid();
        drop(container);
        assert_eq!(read("cgroup.procs"), pid.to_string());
        assert_eq!((read("memory.max"), read("pids.max")), ("67108864".to_owned(), "50".to_owned()));
        assert_eq!(read("cpu.max"), "50000 100000");
        runtime.container(&id).unwrap().start().unwrap();
        let changed = resources(Some(br#"{"pids": {"limit": 40}, "memory": {"limit": 33554432}}"#), &[]).unwrap();
        runtime.container(&id).unwrap().update(&changed).unwrap();
        assert_eq!((read("memory.max"), read("pids.max")), ("33554432".to_owned(), "40".to_owned()));
        runtime.container(&id).unwrap().delete(Delete::Any).unwrap();
        assert!(!scope.exists());
    }
}
