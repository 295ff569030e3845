//! What `inspect` shows, in Docker's fields.

use serde_json::{Value, json};
use strata_imagestore::{Image, ImageError, LayerDetails, LazyProgress};

use crate::container::{Config, Container, Device, FindError, Mount, Namespace, State};
use crate::engine::Engine;

/// An object that `inspect` was asked for.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The container cannot be read.
    #[error(transparent)]
    Container(#[from] FindError),
}

impl InspectError {
    /// Whether there is no such object.
    pub fn is_not_found(&self) -> bool {
        match self {
            InspectError::Image(error) => error.is_not_found(),
            InspectError::Container(error) => error.is_not_found(),
        }
    }
}

impl Engine {
    /// Everything about an image.
    pub fn inspect_image(&self, name: &str) -> Result<Value, InspectError> {
        let image = self.images().image(&self.images().resolve(name)?)?;
        let mut value = image_json(&image);
        if let Some(lazy) = self.images().lazy_progress(&image.layers).map_err(ImageError::from)? {
            value["State"] = state_of(Some(&lazy));
        }
        Ok(value)
    }

    /// Everything about an image and each of its layers.
    pub fn inspect_image_with_layers(&self, name: &str) -> Result<Value, InspectError> {
        let image = self.images().image(&self.images().resolve(name)?)?;
        let layers = self.images().layers(&image)?;
        let mut value = self.inspect_image(name)?;
        value["Layers"] = layers.iter().map(layer_json).collect();
        Ok(value)
    }

    /// Everything about a container; with `size`, also what its files take.
    pub fn inspect_container(&self, name: &str, size: bool) -> Result<Value, InspectError> {
        let container = self.container(name)?;
        let mut value = container_json(&container);
        if size {
            let size = self.container_size(&container);
            value["SizeRw"] = json!(size.writable);
            value["SizeRootFs"] = json!(size.root);
        }
        Ok(value)
    }
}

fn image_json(image: &Image) -> Value {
    let config = &image.config;
    let tags: Vec<String> =
        image.names.iter().filter(|name| name.tag().is_some()).map(strata_imagestore::ImageRef::familiar).collect();
    // What was pulled is known by the registry's digests, what was loaded or made here by that of its manifest.
    let pulled = |name: &strata_imagestore::ImageRef| {
        image.names.iter().any(|other| other.digest().is_some() && other.same_repository(name))
    };
    let mut digests: Vec<String> = Vec::new();
    for name in &image.names {
        match name.digest() {
            Some(digest) => digests.push(format!("{}@{digest}", name.familiar_repository())),
            None if !pulled(name) => digests.push(format!("{}@{}", name.familiar_repository(), image.manifest)),
            None => {}
        }
    }
    digests.dedup();
    let tagged = strata_imagestore::Timestamp { seconds: i64::try_from(image.tagged).unwrap_or(0), nanoseconds: 0 };
    let mut value = json!({
        "Id": image.id.to_string(),
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": config.comment.clone().unwrap_or_default(),
        "Created": config.created,
        "DockerVersion": config.other.get("docker_version").cloned().unwrap_or(json!("")),
        "Author": config.author.clone().unwrap_or_default(),
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": image.size,
        // The same for long. Docker leaves it out since its API 1.44; older scripts ask for it.
        "VirtualSize": image.size,
        "GraphDriver": { "Name": "strata", "Data": null },
        "RootFS": {
            "Type": "layers",
            "Layers": image.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "Metadata": { "LastTagTime": tagged.to_string() },
        "Config": container_config_json(image),
    });
    if let Some(variant) = &config.variant {
        value["Variant"] = json!(variant);
    }
    value
}

/// Whether something is here or how much of it, and what failed.
fn state_of(lazy: Option<&LazyProgress>) -> Value {
    match lazy {
        None => json!({ "Status": "whole" }),
        Some(LazyProgress { here, size, failure, refused }) => {
            let status = if *refused { "refused" } else { "fetching" };
            let failure = failure.clone().unwrap_or_default();
            json!({ "Status": status, "Fetched": here, "Size": size, "Failure": failure })
        }
    }
}

fn layer_json(layer: &LayerDetails) -> Value {
    json!({
        "DiffID": layer.diff_id.to_string(),
        "Digest": layer.descriptor.digest.to_string(),
        "MediaType": layer.descriptor.media_type,
        "CompressedSize": layer.descriptor.size,
        "TarSize": layer.tar_size,
        "Size": layer.size,
        "Entries": layer.entries,
        "Created": layer.created.map(|created| created.to_string()),
        "CreatedBy": layer.created_by,
        "Comment": layer.comment,
        "State": state_of(layer.lazy.as_ref()),
        "SharedBy": layer.shared_by.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn container_config_json(image: &Image) -> Value {
    let config = &image.config.config;
    let mut value = json!({
        "User": config.user,
        "Env": config.env,
        "Cmd": config.cmd,
        "Entrypoint": config.entrypoint,
        "Volumes": config.volumes,
        "WorkingDir": config.working_dir,
        "Labels": config.labels,
        "OnBuild": null,
    });
    if let Some(ports) = &config.exposed_ports {
        value["ExposedPorts"] = json!(ports);
    }
    if let Some(signal) = &config.stop_signal {
        value["StopSignal"] = json!(signal);
    }
    for (name, other) in &config.other {
        value[name.as_str()] = other.clone();
    }
    value
}

fn container_json(container: &Container) -> Value {
    let config = &container.config;
    let (entrypoint, command) = config.command.split_at(config.entrypoint_length.min(config.command.len()));
    let (path, arguments) = config.command.split_first().map_or(("", &[][..]), |(path, rest)| (path.as_str(), rest));
    let network = config.network_name();
    json!({
        "Id": config.id.as_str(),
        "Created": config.created.to_string(),
        "Path": path,
        "Args": arguments,
        "State": state_json(&container.state),
        "Image": config.image,
        "Name": format!("/{}", config.name),
        "RestartCount": container.restarts,
        "LogPath": crate::log::path(container).unwrap_or_default(),
        "Driver": "strata",
        "Platform": "linux",
        "HostConfig": host_config_json(config),
        "GraphDriver": {
            "Name": "strata",
            "Data": { "UpperDir": container.upper(), "WorkDir": container.work() },
        },
        "Mounts": config.mounts.iter().map(mount_json).collect::<Vec<_>>(),
        "Config": {
            "Hostname": config.hostname,
            "Domainname": config.domainname.clone().unwrap_or_default(),
            "User": config.user,
            "Tty": config.tty,
            "OpenStdin": config.open_stdin,
            "StdinOnce": config.stdin_once,
            "Env": config.environment,
            "Cmd": command,
            "Entrypoint": (!entrypoint.is_empty()).then_some(entrypoint),
            "Image": config.image_reference,
            "WorkingDir": config.working_directory,
            "Labels": config.labels,
            "StopSignal": config.stop_signal,
            "StopTimeout": config.stop_timeout,
        },
        "NetworkSettings": { "Networks": { network: {} } },
    })
}

fn host_config_json(config: &Config) -> Value {
    let mut value = resources_json(config);
    let others = json!({
        "AutoRemove": config.auto_remove,
        "CapAdd": config.cap_add,
        "CapDrop": config.cap_drop,
        "Dns": config.names.servers,
        "DnsOptions": config.names.options,
        "DnsSearch": config.names.search,
        "ExtraHosts": config.names.hosts,
        "NetworkMode": config.network_name(),
        "CgroupnsMode": if config.namespaces.host_cgroup { "host" } else { "private" },
        "IpcMode": if config.namespaces.host_ipc { "host" } else { "private" },
        "PidMode": pid_mode(&config.namespaces.pid),
        "UTSMode": if config.namespaces.host_uts { "host" } else { "" },
        "ReadonlyRootfs": config.read_only,
        "RestartPolicy": { "Name": config.restart.name(), "MaximumRetryCount": config.restart.maximum() },
        "LogConfig": { "Type": config.log.driver.name(), "Config": log_options(config) },
        "Privileged": config.privileged,
        "SecurityOpt": config.security.options,
        "UsernsMode": config.user_namespace.to_string(),
        "StorageOpt": config.storage_size.map(|size| json!({ "size": size.to_string() })),
        "ShmSize": config.shm_size.unwrap_or(64 << 20),
        "GroupAdd": config.groups,
    });
    if let (Value::Object(known), Value::Object(others)) = (&mut value, others) {
        known.extend(others);
    }
    value
}

/// Docker's word for it: none for one of its own.
fn pid_mode(pid: &Namespace) -> String {
    if pid.is_private() { String::new() } else { pid.clone().into() }
}

/// What it may use, of which `HostConfig` holds the fields beside its others.
fn resources_json(config: &Config) -> Value {
    let limits = &config.limits;
    json!({
        "BlkioWeight": limits.blkio_weight.unwrap_or(0),
        "CpuPeriod": limits.cpu_period.unwrap_or(0),
        "CpuQuota": limits.cpu_quota.unwrap_or(0),
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "CpusetCpus": limits.cpuset.clone().unwrap_or_default(),
        "CpusetMems": limits.cpuset_mems.clone().unwrap_or_default(),
        "Devices": config.devices.iter().map(device_json).collect::<Vec<_>>(),
        "DeviceCgroupRules": config.device_rules,
        "Memory": limits.memory.unwrap_or(0),
        "MemorySwap": limits.memory_and_swap.unwrap_or(0),
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "MemorySwappiness": limits.swappiness,
        "NanoCpus": limits.nano_cpus.unwrap_or(0),
        "PidsLimit": limits.pids,
        "OomKillDisable": config.oom_kill_disable,
        "OomScoreAdj": config.oom_score.unwrap_or(0),
    })
}

fn log_options(config: &Config) -> Value {
    let mut options = serde_json::Map::new();
    if let Some(size) = config.log.max_size {
        options.insert("max-size".to_owned(), json!(size.to_string()));
    }
    if let Some(files) = config.log.max_file {
        options.insert("max-file".to_owned(), json!(files.to_string()));
    }
    Value::Object(options)
}

fn device_json(device: &Device) -> Value {
    json!({
        "PathOnHost": device.host,
        "PathInContainer": device.container,
        "CgroupPermissions": device.access,
    })
}

fn mount_json(mount: &Mount) -> Value {
    match mount {
        Mount::Bind(bind) => json!({
            "Type": "bind",
            "Source": bind.source,
            "Destination": bind.target,
            "Mode": if bind.read_only { "ro" } else { "" },
            "RW": !bind.read_only,
            "Propagation": if bind.propagation.is_empty() { "rprivate" } else { &bind.propagation },
        }),
        Mount::Tmpfs(tmpfs) => json!({
            "Type": "tmpfs",
            "Source": "",
            "Destination": tmpfs.target,
            "Mode": tmpfs.options.join(","),
            "RW": !tmpfs.options.iter().any(|option| option == "ro"),
            "Propagation": "",
        }),
    }
}

fn state_json(state: &State) -> Value {
    const NEVER: &str = "0001-01-01T00:00:00Z";
    let started = match state {
        State::Running { started, .. } | State::Paused { started, .. } => started.to_string(),
        state => state.end().map_or_else(|| NEVER.to_owned(), |end| end.started.to_string()),
    };
    let error = match state {
        State::Created { failure: Some(failure) } => failure.error.as_str(),
        state => state.end().map_or("", |end| end.error.as_str()),
    };
    let end = state.end();
    json!({
        "Status": state.status(),
        "Running": state.is_active(),
        "Paused": matches!(state, State::Paused { .. }),
        "Restarting": matches!(state, State::Restarting { .. }),
        "OOMKilled": end.is_some_and(|end| end.out_of_memory),
        "Dead": *state == State::Dead,
        "Pid": state.init().map_or(0, |init| init.pid),
        "ExitCode": state.exit_code(),
        "Error": error,
        "StartedAt": started,
        "FinishedAt": end.map_or_else(|| NEVER.to_owned(), |end| end.finished.to_string()),
    })
}
