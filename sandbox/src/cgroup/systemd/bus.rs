//! A connection to the message bus on which systemd listens: the system's, or a user's.

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{self, ERROR, METHOD_RETURN, Message, Method, Value};
use crate::userns;

/// A connection that has a name on the bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Signals that came while an answer was awaited.
    signals: Vec<Message>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no socket, or nobody listens.
    #[error(
        "no systemd answers on the message bus at {path:?}: the systemd cgroup driver needs one; use cgroupfs elsewhere"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bus address that is no socket.
    #[error("the address of the message bus ({0:?}) is no unix:path= of a socket")]
    Address(String),
    /// There is no user bus.
    #[error("there is no message bus of this user: neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set")]
    NoUserBus,
    /// The bus refused us.
    #[error("the message bus does not accept user {0}")]
    Refused(u32),
    /// The connection broke, or what came is malformed.
    #[error("talk to systemd ({call})")]
    Broken {
        /// What was asked.
        call: String,
        /// Why.
        source: io::Error,
    },
    /// systemd says no.
    #[error("systemd: {call}: {text} ({name})")]
    Failed {
        /// What was asked.
        call: String,
        /// The error's name.
        name: String,
        /// Its text.
        text: String,
    },
    /// A plain user's process that is not in his systemd's part of the cgroups.
    #[error(
        "cgroup {own:?} of this process is outside of {theirs:?}, which the user's systemd has: nothing can go there from here; \
         systemd-run --user --scope starts a command inside"
    )]
    Elsewhere {
        /// Where the process is.
        own: String,
        /// What the user has been given.
        theirs: String,
    },
    /// A job did not succeed.
    #[error("systemd: the job for {unit} ended as {result:?}")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word for how.
        result: String,
    },
}

impl BusError {
    /// Whether systemd answered with this error.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, BusError::Failed { name, .. } if name == wanted)
    }
}

impl Bus {
    /// Connects to the bus of the system, or of the user who runs this, and says hello.
    pub(super) fn open(of_user: bool) -> Result<Bus, BusError> {
        let path = if of_user { user_socket()? } else { system_socket()? };
        // Outside of our user namespace, where the bus is, we are somebody else.
        let uid = userns::uid_outside();
        let connect = |source| BusError::Connect { path: path.clone(), source };
        let stream = UnixStream::connect(&path).map_err(connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(connect)?;
        let mut bus = Bus { stream, serial: 0, signals: Vec::new() };
        let accepted = bus.authenticate(uid).map_err(connect)?;
        if !accepted {
            return Err(BusError::Refused(uid));
        }
        bus.call(Method { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member: "Hello" }, &[])?;
        Ok(bus)
    }

    /// `EXTERNAL`: the socket tells who we are, we say as whom we want to be taken.
    fn authenticate(&mut self, uid: u32) -> io::Result<bool> {
        let name: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        self.stream.write_all(format!("\0AUTH EXTERNAL {name}\r\n").as_bytes())?;
        let mut line = Vec::new();
        // Byte by byte: what follows the line is another matter.
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no answer of a message bus"));
            }
        }
        if !line.starts_with(b"OK") {
            return Ok(false);
        }
        self.stream.write_all(b"BEGIN\r\n")?;
        Ok(true)
    }

    /// Calls, and waits for the answer.
    pub(super) fn call(&mut self, method: Method<'_>, arguments: &[Value]) -> Result<Message, BusError> {
        let call = || method.member.to_owned();
        let broken = |source| BusError::Broken { call: call(), source };
        self.serial += 1;
        self.stream.write_all(&wire::call(self.serial, method, arguments)).map_err(broken)?;
        loop {
            let message = self.receive().map_err(broken)?;
            match message.kind {
                wire::SIGNAL => self.signals.push(message),
                METHOD_RETURN if message.reply_to == Some(self.serial) => return Ok(message),
                ERROR if message.reply_to == Some(self.serial) => {
                    let text = match message.signature.starts_with('s') {
                        true => wire::Reader::of_body(&message).text().map_err(broken)?,
                        false => String::new(),
                    };
                    return Err(BusError::Failed { call: call(), name: message.error.unwrap_or_default(), text });
                }
                _ => {}
            }
        }
    }

    /// Waits for the signal that `wanted` takes, also among those that have come.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Message) -> io::Result<Option<T>>,
    ) -> Result<T, BusError> {
        let broken = |source| BusError::Broken { call: what.to_owned(), source };
        let deadline = Instant::now() + PATIENCE;
        loop {
            for signal in std::mem::take(&mut self.signals) {
                if let Some(found) = wanted(&signal).map_err(broken)? {
                    return Ok(found);
                }
            }
            if Instant::now() > deadline {
                return Err(broken(io::ErrorKind::TimedOut.into()));
            }
            let message = self.receive().map_err(broken)?;
            if message.kind == wire::SIGNAL {
                self.signals.push(message);
            }
        }
    }

    fn receive(&mut self) -> io::Result<Message> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let mut bytes = head.to_vec();
        bytes.resize(wire::size(&head)?, 0);
        self.stream.read_exact(&mut bytes[16..])?;
        wire::parse(&bytes)
    }
}

fn system_socket() -> Result<PathBuf, BusError> {
    match env::var("DBUS_SYSTEM_BUS_ADDRESS") {
        Ok(address) => of_address(&address),
        Err(_) => Ok(PathBuf::from("/run/dbus/system_bus_socket")),
    }
}

fn user_socket() -> Result<PathBuf, BusError> {
    match (env::var("DBUS_SESSION_BUS_ADDRESS"), env::var_os("XDG_RUNTIME_DIR")) {
        (Ok(address), _) => of_address(&address),
        (_, Some(folder)) => Ok(Path::new(&folder).join("bus")),
        _ => Err(BusError::NoUserBus),
    }
}

/// The socket of the first address that is one: `unix:path=/run/x,guid=...;...`, with `%41` for what is special.
fn of_address(address: &str) -> Result<PathBuf, BusError> {
    let path = address.split(';').find_map(|one| {
        let options = one.strip_prefix("unix:")?;
        options.split(',').find_map(|option| option.strip_prefix("path="))
    });
    let path = path.and_then(unescape).ok_or_else(|| BusError::Address(address.to_owned()))?;
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(&path)))
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut found = Vec::new();
    while let Some(byte) = bytes.next() {
        found.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    Some(found)
}

/// The variables that say where a bus is.
pub const ENVIRONMENT: [&str; 3] = ["DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"];
const BUS: &str = "org.freedesktop.DBus";
/// As long as runc waits for a unit.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_sockets() {
        let path = |text: &str| of_address(text).ok();
        assert_eq!(path("unix:path=/run/user/1000/bus,guid=ab"), Some(PathBuf::from("/run/user/1000/bus")));
        assert_eq!(path("tcp:host=a;unix:guid=1,path=/tmp/a%20b"), Some(PathBuf::from("/tmp/a b")));
        for other in ["unix:abstract=/x", "tcp:host=a", "", "unix:path=/%4"] {
            assert_eq!(path(other), None, "{other}");
        }
    }
}
