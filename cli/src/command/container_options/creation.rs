//! From the words of the command line to what the engine creates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use strata_engine::{
    Bind, Creation, Limits, LogConfig, LogDriver, Mount, NameResolution, Namespace, Namespaces, RestartPolicy, Rlimit,
    SeccompChoice, Security, Tmpfs, clean_path, parse_size,
};

use super::{ContainerOptions, LimitOptions};

/// Reads all options of `run`.
pub(crate) fn creation(run: &ContainerOptions) -> Result<Creation> {
    let (image, command) = run.image_and_command.split_first().expect("clap requires one value");
    let mut mounts = Vec::new();
    for text in &run.volume {
        mounts.push(volume(text)?);
    }
    for text in &run.mount {
        mounts.push(mount(text)?);
    }
    for text in &run.tmpfs {
        mounts.push(tmpfs(text)?);
    }
    let mut targets: Vec<&str> = mounts.iter().map(Mount::target).collect();
    targets.sort_unstable();
    if let Some(pair) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("Duplicate mount point: {}", pair[0]);
    }
    let environment = environment(&run.env_file, &run.env)?;
    let Walls { seccomp, no_new_privileges, security } = walls(&run.security_opt, run.policy.as_deref(), run.audit)?;
    Ok(Creation {
        image: image.clone(),
        command: command.to_vec(),
        // `--entrypoint ""` means: none.
        entrypoint: run.entrypoint.as_ref().map(|entrypoint| match entrypoint.as_str() {
            "" => Vec::new(),
            entrypoint => vec![entrypoint.to_owned()],
        }),
        name: run.name.clone(),
        hostname: run.hostname.clone(),
        domainname: run.domainname.clone(),
        names: NameResolution {
            hosts: run.add_host.clone(),
            servers: run.dns.clone(),
            search: run.dns_search.clone(),
            options: run.dns_option.clone(),
        },
        environment,
        working_directory: run.workdir.clone(),
        user: run.user.clone(),
        groups: run.group_add.clone(),
        tty: run.tty,
        open_stdin: run.interactive,
        auto_remove: run.rm,
        read_only: run.read_only,
        mounts,
        devices: run.device.clone(),
        device_rules: run.device_cgroup_rule.clone(),
        limits: Limits {
            swappiness: run.memory_swappiness.map(swappiness).transpose()?.flatten(),
            ..limits(&run.limits)?
        },
        oom_kill_disable: run.oom_kill_disable,
        cap_add: run.cap_add.clone(),
        cap_drop: run.cap_drop.clone(),
        seccomp,
        no_new_privileges,
        security,
        network: network(&run.network)?,
        namespaces: namespaces(run)?,
        user_namespace: run.userns.clone(),
        stop_signal: run.stop_signal.as_deref().map(signal).transpose()?,
        labels: labels(&run.label_file, &run.label)?,
        privileged: run.privileged,
        rlimits: run.ulimit.iter().map(|limit| rlimit(limit)).collect::<Result<_>>()?,
        sysctls: run.sysctl.iter().map(|sysctl| pair(sysctl)).collect::<BTreeMap<_, _>>(),
        shm_size: run.shm_size.as_deref().map(parse_size).transpose().map_err(|error| anyhow!(error))?,
        storage_size: storage_size(run)?,
        oom_score: run.oom_score_adj,
        restart: restart(run)?,
        stop_timeout: run.stop_timeout,
        log: log(&run.log_driver, &run.log_opt)?,
        stdin_once: false,
    })
}

/// Reads variables out of files, and over them those of the command line.
pub(crate) fn environment(files: &[PathBuf], words: &[String]) -> Result<Vec<String>> {
    let mut environment = Vec::new();
    for file in files {
        environment.extend(environment_file(file)?);
    }
    for text in words {
        environment.extend(variable(text)?);
    }
    Ok(environment)
}

fn restart(run: &ContainerOptions) -> Result<RestartPolicy> {
    if run.rm && run.restart != RestartPolicy::No {
        bail!("conflicting options: cannot specify both --restart and --rm");
    }
    Ok(run.restart)
}

fn signal(text: &str) -> Result<String> {
    match strata_engine::signal::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => bail!("Invalid signal: {text}"),
    }
}

fn log(driver: &str, options: &[String]) -> Result<LogConfig> {
    let driver = match driver {
        "local" => LogDriver::Local,
        "json-file" => LogDriver::JsonFile,
        "none" => LogDriver::None,
        other => bail!("logger: no log driver named '{other}' is registered"),
    };
    let mut config = LogConfig { driver, ..LogConfig::default() };
    for option in options {
        let (name, value) = pair(option);
        match name.as_str() {
            "max-size" if value == "-1" => config.max_size = Some(u64::MAX),
            "max-size" => config.max_size = Some(parse_size(&value).map_err(|error| anyhow!(error))?),
            "max-file" => {
                let files = value.parse().ok().filter(|files| *files > 0);
                config.max_file = Some(files.ok_or_else(|| anyhow!("max-file cannot be less than 1"))?);
            }
            other => bail!("unknown log opt '{other}' for {} log driver", driver.name()),
        }
    }
    if driver == LogDriver::JsonFile && config.max_file.is_some_and(|files| files > 1) && config.max_size.is_none() {
        bail!("max-file cannot be used without max-size");
    }
    Ok(config)
}

/// Reads `HOST:CONTAINER[:OPTIONS]`.
fn volume(text: &str) -> Result<Mount> {
    let invalid = || anyhow!("invalid volume specification: '{text}'");
    let mut parts = text.splitn(3, ':');
    let source = parts.next().unwrap_or_default();
    let Some(target) = parts.next() else {
        bail!("invalid volume specification: '{text}': anonymous volumes are not available yet");
    };
    if source.is_empty() || target.is_empty() {
        return Err(invalid());
    }
    if !source.starts_with(['/', '.', '~']) {
        bail!("invalid volume specification: '{text}': named volumes are not available yet, only paths of the host");
    }
    if !target.starts_with('/') {
        bail!("invalid volume specification: '{text}': invalid mount path: '{target}' mount path must be absolute");
    }
    if clean_path(target) == "/" {
        bail!("invalid volume specification: '{text}': invalid specification: destination can't be '/'");
    }
    let mut bind = Bind {
        source: absolute(source)?,
        target: clean_path(target),
        read_only: false,
        create_source: true,
        propagation: String::new(),
    };
    for option in parts.next().unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" => bind.read_only = true,
            // SELinux labels, which this kernel has none of, and hints for file sharing with virtual machines.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => bind.propagation = option.to_owned(),
            other => bail!("invalid mode: {other}"),
        }
    }
    Ok(Mount::Bind(bind))
}

/// Reads `type=...,src=...,dst=...`.
fn mount(text: &str) -> Result<Mount> {
    let mut kind = "volume";
    let (mut source, mut target, mut read_only, mut propagation) = (None, None, false, String::new());
    let mut options = Vec::new();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match (key.to_ascii_lowercase().as_str(), value) {
            ("type", value) => kind = value,
            ("source" | "src", value) => source = Some(value),
            ("target" | "dst" | "destination", value) => target = Some(value),
            ("readonly" | "ro", "" | "true" | "1") => read_only = true,
            ("readonly" | "ro", "false" | "0") => read_only = false,
            ("bind-propagation", value) => propagation = value.to_owned(),
            ("tmpfs-size", value) => {
                options.push(format!("size={}", parse_size(value).map_err(|error| anyhow!(error))?));
            }
            ("tmpfs-mode", value) => options.push(format!("mode={value}")),
            ("consistency", _) => {}
            (key, _) => bail!("invalid argument \"{text}\" for \"--mount\" flag: unexpected key '{key}' in '{field}'"),
        }
    }
    let invalid = |why: &str| anyhow!("invalid argument \"{text}\" for \"--mount\" flag: {why}");
    let target = target.filter(|target| !target.is_empty()).ok_or_else(|| invalid("target is required"))?;
    if !target.starts_with('/') {
        return Err(invalid(&format!("invalid mount path: '{target}' mount path must be absolute")));
    }
    match kind {
        "bind" => {
            let source = source.filter(|source| !source.is_empty()).ok_or_else(|| invalid("source is required"))?;
            Ok(Mount::Bind(Bind {
                source: absolute(source)?,
                target: clean_path(target),
                read_only,
                create_source: false,
                propagation,
            }))
        }
        "tmpfs" => {
            if source.is_some() {
                return Err(invalid("a tmpfs has no source"));
            }
            if read_only {
                options.push("ro".to_owned());
            }
            Ok(Mount::Tmpfs(Tmpfs { target: clean_path(target), options }))
        }
        other => Err(invalid(&format!("mount type {other:?} is not available, only bind and tmpfs"))),
    }
}

/// Reads `DIR[:OPTIONS]`.
fn tmpfs(text: &str) -> Result<Mount> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        bail!("invalid mount path: '{target}' mount path must be absolute");
    }
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Mount::Tmpfs(Tmpfs { target: clean_path(target), options }))
}

fn absolute(path: &str) -> Result<PathBuf> {
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            PathBuf::from(format!("{}{rest}", std::env::var("HOME").context("find the home directory for '~'")?))
        }
        _ => PathBuf::from(path),
    };
    std::path::absolute(&path).with_context(|| format!("find {path:?}"))
}

/// Reads `NAME=VALUE`, or takes the value from our own environment; a variable we do not have is left out.
fn variable(text: &str) -> Result<Option<String>> {
    match text.split_once('=') {
        Some(("", _)) => bail!("invalid environment variable: {text}"),
        Some(_) => Ok(Some(text.to_owned())),
        None if text.is_empty() => bail!("invalid environment variable: {text}"),
        None => Ok(std::env::var(text).ok().map(|value| format!("{text}={value}"))),
    }
}

fn environment_file(path: &Path) -> Result<Vec<String>> {
    let mut variables = Vec::new();
    for line in lines_of_file(path)? {
        variables.extend(variable(&line)?);
    }
    Ok(variables)
}

/// Reads the lines `NAME[=VALUE]` of a file of variables or labels, without comments and empty lines. The texts are Docker's, which
/// are about variables in either case.
fn lines_of_file(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| format!("open {}", path.display()))?;
    let text =
        String::from_utf8(bytes).map_err(|_| anyhow!("env file {} contains invalid utf8 bytes", path.display()))?;
    let mut lines = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            bail!("poorly formatted environment: no variable name on line '{line}'");
        }
        if name.contains(char::is_whitespace) {
            bail!("poorly formatted environment: variable '{name}' contains whitespaces");
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

/// What `--security-opt` and `--policy` say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Walls {
    seccomp: SeccompChoice,
    no_new_privileges: bool,
    security: Security,
}

fn walls(options: &[String], policy: Option<&Path>, audit: bool) -> Result<Walls> {
    let mut walls = Walls::default();
    let security = &mut walls.security;
    for option in options {
        match option.split_once('=').or_else(|| option.split_once(':')).unwrap_or((option, "")) {
            ("no-new-privileges", "" | "true") => walls.no_new_privileges = true,
            ("no-new-privileges", "false") => walls.no_new_privileges = false,
            ("hardened", "" | "true") => security.hardened = true,
            ("hardened", "false") => security.hardened = false,
            ("seccomp", "unconfined") => walls.seccomp = SeccompChoice::Unconfined,
            ("seccomp", "builtin") => walls.seccomp = SeccompChoice::Default,
            ("seccomp", path) if !path.is_empty() => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("opening seccomp profile ({path}) failed"))?;
                walls.seccomp = SeccompChoice::Profile(text);
            }
            ("apparmor", "unconfined") => security.apparmor = None,
            ("apparmor", profile) if !profile.is_empty() => security.apparmor = Some(profile.to_owned()),
            ("label", "disable") => {}
            ("systempaths", "unconfined") => security.unmask.push("ALL".to_owned()),
            ("mask", paths) if !paths.is_empty() => {
                for path in paths.split(':') {
                    security.mask.push(container_path(option, path)?);
                }
            }
            ("unmask", "ALL" | "all") => security.unmask.push("ALL".to_owned()),
            ("unmask", paths) if !paths.is_empty() => {
                for path in paths.split(':') {
                    security.unmask.push(container_path(option, path)?);
                }
            }
            ("label", _) => bail!("--security-opt {option:?}: labels of SELinux are not applied; use label=disable"),
            _ => bail!("invalid --security-opt: {option:?}"),
        }
        security.options.push(option.clone());
    }
    if let Some(path) = policy {
        let text = std::fs::read_to_string(path).with_context(|| format!("open policy {}", path.display()))?;
        strata_engine::check_policy(&text).with_context(|| format!("policy {}", path.display()))?;
        security.policy = Some(text);
        security.audit = audit;
    }
    Ok(walls)
}

fn container_path(option: &str, path: &str) -> Result<String> {
    if !path.starts_with('/') {
        bail!("invalid --security-opt {option:?}: {path:?} is no absolute path");
    }
    Ok(path.to_owned())
}

/// Reads whose namespaces it is to be in. The texts are Docker's where Docker has the case.
fn namespaces(run: &ContainerOptions) -> Result<Namespaces> {
    let is_host = |option: &str, kind: &str, text: &str| match text {
        "" | "private" => Ok(false),
        "host" => Ok(true),
        _ => bail!("--{option}: invalid {kind} mode: {text}; use private or host"),
    };
    let invalid = || anyhow!("--pid: invalid PID mode: {}; use private, host or container:NAME", run.pid);
    Ok(Namespaces {
        pid: namespace(&run.pid, &["", "private"]).ok_or_else(invalid)?,
        // Nothing else of ours asks whether it may be shared.
        host_ipc: run.ipc != "shareable" && is_host("ipc", "IPC", &run.ipc)?,
        host_uts: is_host("uts", "UTS", &run.uts)?,
        host_cgroup: is_host("cgroupns", "CGROUP", &run.cgroupns)?,
    })
}

fn network(text: &str) -> Result<Namespace> {
    namespace(text, &["none"]).ok_or_else(|| match text {
        "bridge" | "default" => {
            anyhow!("bridge networking is not available yet; use --network none, host or container:NAME")
        }
        other => anyhow!("network {other} not found; use --network none, host or container:NAME"),
    })
}

/// Reads whose namespace is meant; `private` are the words for one of its own.
fn namespace(text: &str, private: &[&str]) -> Option<Namespace> {
    match text.split_once(':') {
        None if text == "host" => Some(Namespace::Host),
        None => private.contains(&text).then_some(Namespace::Private),
        Some(("container", name)) if !name.is_empty() => Some(Namespace::Container(name.to_owned())),
        Some(_) => None,
    }
}

/// Reads the limits.
pub(crate) fn limits(run: &LimitOptions) -> Result<Limits> {
    const MINIMUM_MEMORY: i64 = 6 << 20;
    let bytes = |flag: &str, text: &String| -> Result<i64> {
        let bytes =
            parse_size(text).map_err(|error| anyhow!("invalid argument \"{text}\" for \"{flag}\" flag: {error}"))?;
        i64::try_from(bytes).with_context(|| format!("invalid argument \"{text}\" for \"{flag}\" flag"))
    };
    let memory = run.memory.as_ref().map(|text| bytes("--memory", text)).transpose()?.filter(|bytes| *bytes != 0);
    if memory.is_some_and(|memory| memory < MINIMUM_MEMORY) {
        bail!("Minimum memory limit allowed is 6MB");
    }
    let memory_and_swap = match run.memory_swap.as_deref() {
        Some("-1") => Some(-1),
        Some(_) => run.memory_swap.as_ref().map(|text| bytes("--memory-swap", text)).transpose()?,
        None => None,
    }
    .filter(|bytes| *bytes != 0);
    match (memory, memory_and_swap) {
        (None, Some(_)) => bail!("You should always set the Memory limit when using Memoryswap limit, see usage"),
        (Some(memory), Some(both)) if both > 0 && both < memory => {
            bail!("Minimum memoryswap limit should be larger than memory limit, see usage")
        }
        _ => {}
    }
    let reservation = run.memory_reservation.as_ref().map(|text| bytes("--memory-reservation", text)).transpose()?;
    let memory_reservation = reservation.filter(|bytes| *bytes != 0);
    if memory_reservation.is_some_and(|reservation| reservation < MINIMUM_MEMORY) {
        bail!("Minimum memory reservation allowed is 6MB");
    }
    if memory.zip(memory_reservation).is_some_and(|(limit, reservation)| limit < reservation) {
        bail!("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    let nano_cpus = run.cpus.as_deref().map(nano_cpus).transpose()?.filter(|nano| *nano != 0);
    let cpu_quota = run.cpu_quota.filter(|quota| *quota != 0);
    let cpu_period = run.cpu_period.filter(|period| *period != 0);
    match (nano_cpus, cpu_period, cpu_quota) {
        (Some(_), Some(_), _) => bail!("Conflicting options: Nano CPUs and CPU Period cannot both be set."),
        (Some(_), _, Some(_)) => bail!("Conflicting options: Nano CPUs and CPU Quota cannot both be set."),
        (_, Some(period), _) if !(1000..=1_000_000).contains(&period) => {
            bail!("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
        }
        (_, _, Some(quota)) if (0..1000).contains(&quota) => {
            bail!("CPU cfs quota can not be less than 1ms (i.e. 1000)")
        }
        _ => {}
    }
    let blkio_weight = run.blkio_weight.filter(|weight| *weight != 0);
    if blkio_weight.is_some_and(|weight| !(10..=1000).contains(&weight)) {
        bail!("Range of blkio weight is from 10 to 1000");
    }
    Ok(Limits {
        memory,
        memory_and_swap,
        memory_reservation,
        swappiness: None,
        nano_cpus,
        cpu_quota,
        cpu_period,
        cpu_shares: run.cpu_shares.filter(|shares| *shares != 0),
        cpuset: run.cpuset_cpus.clone().filter(|list| !list.is_empty()),
        cpuset_mems: run.cpuset_mems.clone().filter(|list| !list.is_empty()),
        blkio_weight,
        pids: run.pids_limit.filter(|pids| *pids > 0),
    })
}

/// Reads how readily memory is swapped out; -1 leaves it as it is.
fn swappiness(number: i64) -> Result<Option<u64>> {
    match number {
        -1 => Ok(None),
        0..=100 => Ok(Some(number.unsigned_abs())),
        _ => bail!("Invalid value: {number}, valid memory swappiness range is 0-100"),
    }
}

/// Reads a number of CPUs with at most nine decimals.
fn nano_cpus(text: &str) -> Result<u64> {
    let invalid =
        || anyhow!("invalid argument \"{text}\" for \"--cpus\" flag: failed to parse {text} as a rational number");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(invalid());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| invalid())?;
    let nano = whole.checked_mul(1_000_000_000).and_then(|nano| nano.checked_add(fraction)).ok_or_else(invalid)?;
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    if nano != 0 && !(10_000_000..=available * 1_000_000_000).contains(&nano) {
        bail!("range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available");
    }
    Ok(nano)
}

/// Reads `NAME=SOFT[:HARD]`; -1 is no limit.
fn rlimit(text: &str) -> Result<Rlimit> {
    const NAMES: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let invalid = |why: &str| anyhow!("invalid argument \"{text}\" for \"--ulimit\" flag: {why}");
    let (name, values) = text.split_once('=').ok_or_else(|| invalid("NAME=SOFT[:HARD] is expected"))?;
    if !NAMES.contains(&name) {
        return Err(invalid(&format!("invalid ulimit type: {name}")));
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |value: &str| match value {
        "-1" => Ok(u64::MAX),
        value => value.parse().map_err(|_| invalid("a limit is a number")),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(invalid("ulimit soft limit must be less than or equal to hard limit"));
    }
    Ok(Rlimit { name: name.to_owned(), soft, hard })
}

/// Reads labels: those of files first, in which, unlike in those of variables, a name alone has no value.
fn labels(files: &[PathBuf], given: &[String]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for file in files {
        labels.extend(lines_of_file(file)?.iter().map(|line| pair(line)));
    }
    labels.extend(given.iter().map(|label| pair(label)));
    Ok(labels)
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// Reads how much the writable layer may hold, in our words or in Docker's.
fn storage_size(run: &ContainerOptions) -> Result<Option<u64>> {
    let mut size = run.size.as_deref();
    for option in &run.storage_opt {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(value),
            _ => bail!("unknown storage option: {option}"),
        }
    }
    let Some(text) = size else { return Ok(None) };
    match parse_size(text) {
        Ok(size) if size > 0 => Ok(Some(size)),
        Ok(_) => bail!("invalid size: '{text}'"),
        Err(error) => Err(anyhow!(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str) -> Bind {
        match volume(text).unwrap() {
            Mount::Bind(bind) => bind,
            Mount::Tmpfs(_) => panic!("a bind was expected"),
        }
    }

    #[test]
    fn volumes() {
        let read_only = bind("/srv/data:/data/:ro");
        assert_eq!((read_only.source.as_path(), read_only.target.as_str()), (Path::new("/srv/data"), "/data"));
        assert!(read_only.read_only && read_only.create_source);
        assert!(bind("./here:/x").source.is_absolute());
        assert_eq!(bind("/a:/b/../c:rw,rslave").target, "/c");
        assert_eq!(bind("/a:/b:rslave").propagation, "rslave");
        for text in ["", "/a", ":/b", "/a:", "data:/b", "/a:b", "/a:/b:nope", "/a:/", "/a:/.."] {
            assert!(volume(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mounts() {
        let Mount::Bind(bind) = mount("type=bind,src=/srv,dst=/data,readonly").unwrap() else {
            panic!("a bind was expected")
        };
        assert!(bind.read_only && !bind.create_source);
        let tmpfs = mount("type=tmpfs,destination=/run,tmpfs-size=64m,tmpfs-mode=1777").unwrap();
        let options = vec![format!("size={}", 64 << 20), "mode=1777".to_owned()];
        assert_eq!(tmpfs, Mount::Tmpfs(Tmpfs { target: "/run".to_owned(), options }));
        for (text, why) in [
            ("type=bind,src=/srv", "target is required"),
            ("type=bind,dst=/x", "source is required"),
            ("type=bind,src=/a,dst=x", "mount path must be absolute"),
            ("dst=/x", "mount type \"volume\" is not available"),
            ("type=tmpfs,dst=/x,src=/y", "a tmpfs has no source"),
            ("type=bind,colour=red,dst=/x", "unexpected key 'colour'"),
        ] {
            let error = mount(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn environment_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        std::fs::write(&path, "# comment\n\nA=1\n  B=two words \nPATH\nSURELY_NOT_SET_HERE\n").unwrap();
        let path_value = std::env::var("PATH").unwrap();
        let expected = vec!["A=1".to_owned(), "B=two words ".to_owned(), format!("PATH={path_value}")];
        assert_eq!(environment_file(&path).unwrap(), expected);
        for text in ["=1\n", "A B=1\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(environment_file(&path).is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_numbers() {
        assert_eq!(nano_cpus("0.5").unwrap(), 500_000_000);
        assert_eq!(nano_cpus("1").unwrap(), 1_000_000_000);
        assert_eq!(nano_cpus(".25").unwrap(), 250_000_000);
        assert_eq!(nano_cpus("0").unwrap(), 0);
        for text in ["", ".", "-1", "x", "0.001", "100000", "1e3", "0.1234567891"] {
            assert!(nano_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn process_limits() {
        let limit = |name: &str, soft, hard| Rlimit { name: name.to_owned(), soft, hard };
        assert_eq!(rlimit("nofile=1024:2048").unwrap(), limit("nofile", 1024, 2048));
        assert_eq!(rlimit("core=-1").unwrap(), limit("core", u64::MAX, u64::MAX));
        for text in ["nofile", "nope=1", "nofile=x", "nofile=2:1"] {
            assert!(rlimit(text).is_err(), "{text}");
        }
    }

    #[test]
    fn security_options() {
        let read = |options: &[&str]| {
            walls(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>(), None, false)
        };
        let found = read(&["seccomp=unconfined", "no-new-privileges"]).unwrap();
        assert_eq!((found.seccomp, found.no_new_privileges), (SeccompChoice::Unconfined, true));
        assert_eq!(read(&[]).unwrap(), Walls::default());
        let found = read(&["hardened", "mask=/a:/b", "unmask=/proc/*", "systempaths=unconfined"]).unwrap().security;
        assert!(found.hardened && found.options.len() == 4);
        assert_eq!((found.mask.join(" "), found.unmask.join(" ")), ("/a /b".to_owned(), "/proc/* ALL".to_owned()));
        for wrong in ["seccomp=/no/such/file", "mask=relative", "nonsense", "label=type:x", "mask=", "hardened=maybe"] {
            assert!(read(&[wrong]).is_err(), "{wrong}");
        }
    }
}
