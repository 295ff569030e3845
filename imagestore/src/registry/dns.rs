//! Host names to addresses: `/etc/hosts` and the servers of `/etc/resolv.conf`.
//!
//! A static executable cannot use glibc's `getaddrinfo`, which loads libraries at run time. What registries need is a
//! stub resolver: one question for each family of addresses, over UDP, and over TCP where the answer is too long.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Asks for the addresses of hosts, and remembers them for a while.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    /// The kind and the text of the error, if there was none.
    addresses: Result<Vec<IpAddr>, (io::ErrorKind, String)>,
    /// When that is asked again; never, if something was decided by where the host is.
    until: Option<Instant>,
}

impl Resolver {
    /// Returns the addresses of a host, IPv4 first. That there are none is remembered for a short while as well.
    pub(super) fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let now = Instant::now();
        if let Some(known) = self.lock().get(host).filter(|known| known.until.is_none_or(|until| until > now)) {
            return known.addresses.clone().map_err(|(kind, text)| io::Error::new(kind, text));
        }
        let addresses = resolve(host).map_err(|error| (error.kind(), error.to_string()));
        let until = Instant::now() + if addresses.is_ok() { REMEMBERED } else { FAILURE_REMEMBERED };
        let mut known = self.lock();
        // Who has asked meanwhile may have decided something by the answer.
        if known.get(host).is_none_or(|known| known.until.is_some()) {
            known.insert(host.to_owned(), Known { addresses, until: Some(until) });
        }
        known[host].addresses.clone().map_err(|(kind, text)| io::Error::new(kind, text))
    }

    /// Returns whether all addresses of a host satisfy a condition. If so they stay its addresses from now on, so that nobody
    /// who answers such questions leads us elsewhere with what was granted to this place. Servers are asked only if `ask`.
    pub(super) fn is_at(&self, host: &str, ask: bool, condition: impl Fn(IpAddr) -> bool) -> bool {
        let addresses = if ask { self.resolve(host).unwrap_or_default() } else { known_here(host) };
        if addresses.is_empty() || !addresses.iter().all(|address| condition(*address)) {
            return false;
        }
        self.lock().insert(host.to_owned(), Known { addresses: Ok(addresses), until: None });
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    let here = known_here(host);
    if !here.is_empty() {
        return Ok(here);
    }
    let configuration = Configuration::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    configuration.resolve(host)
}

/// Returns the addresses that no server is asked for.
fn known_here(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return vec![address];
    }
    let known = in_hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if known.is_empty() && (host == "localhost" || host.ends_with(".localhost")) {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    known
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    found
}

/// What `/etc/resolv.conf` says.
#[derive(Debug, PartialEq, Eq)]
struct Configuration {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    dots: usize,
    timeout: Duration,
    attempts: u32,
}

impl Configuration {
    fn parse(text: &str) -> Configuration {
        let mut configuration = Configuration {
            servers: Vec::new(),
            search: Vec::new(),
            dots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|text| text.split('%').next()?.parse::<IpAddr>().ok());
                    configuration.servers.extend(address.map(|address| SocketAddr::new(address, PORT)));
                }
                Some("search" | "domain") => configuration.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|option| configuration.set(option)),
                _ => {}
            }
        }
        configuration.servers.truncate(MAX_SERVERS);
        if configuration.servers.is_empty() {
            configuration.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
        }
        configuration
    }

    fn set(&mut self, option: &str) {
        let Some((name, Ok(number))) = option.split_once(':').map(|(name, value)| (name, value.parse::<u32>())) else {
            return;
        };
        match name {
            "ndots" => self.dots = number.min(15) as usize,
            "timeout" => self.timeout = Duration::from_secs(number.clamp(1, 30).into()),
            "attempts" => self.attempts = number.clamp(1, 5),
            _ => {}
        }
    }

    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let absolute = host.trim_end_matches('.');
        let searched = self.search.iter().map(|domain| format!("{absolute}.{}", domain.trim_end_matches('.')));
        let mut names: Vec<String> = if host.ends_with('.') { Vec::new() } else { searched.collect() };
        let first = host.ends_with('.') || absolute.matches('.').count() >= self.dots;
        names.insert(if first { 0 } else { names.len() }, absolute.to_owned());
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
        for name in names {
            let mut found = Vec::new();
            for kind in [Kind::V4, Kind::V6] {
                match self.ask(&name, kind) {
                    Ok(addresses) => found.extend(addresses),
                    Err(error) => last = error,
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Err(last)
    }

    fn ask(&self, name: &str, kind: Kind) -> io::Result<Vec<IpAddr>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
        for _ in 0..self.attempts {
            for server in &self.servers {
                match self.ask_server(*server, name, kind) {
                    Ok(addresses) => return Ok(addresses),
                    // The server knows that there is none; another one would say the same.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    fn ask_server(&self, server: SocketAddr, name: &str, kind: Kind) -> io::Result<Vec<IpAddr>> {
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        let question = encode(name, kind, id).ok_or_else(|| invalid("the host's name is too long"))?;
        let own: SocketAddr =
            if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        // Connected, so that the kernel drops what others send.
        let socket = UdpSocket::bind(own)?;
        socket.connect(server)?;
        socket.send(&question)?;
        let deadline = Instant::now() + self.timeout;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the name server does not answer"));
            }
            socket.set_read_timeout(Some(left))?;
            let count = match socket.recv(&mut buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                result => result?,
            };
            match decode(&buffer[..count], &question, kind) {
                Answer::Foreign => {}
                Answer::Cut => return self.ask_by_tcp(server, &question, kind),
                Answer::Failed(error) => return Err(error),
                Answer::Addresses(addresses) => return Ok(addresses),
            }
        }
    }

    fn ask_by_tcp(&self, server: SocketAddr, question: &[u8], kind: Kind) -> io::Result<Vec<IpAddr>> {
        let mut stream = TcpStream::connect_timeout(&server, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let length = u16::try_from(question.len()).map_err(|_| invalid("the host's name is too long"))?;
        stream.write_all(&[&length.to_be_bytes()[..], question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message)?;
        match decode(&message, question, kind) {
            Answer::Addresses(addresses) => Ok(addresses),
            Answer::Failed(error) => Err(error),
            Answer::Foreign | Answer::Cut => Err(invalid("the name server's answer is damaged")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V4,
    V6,
}

impl Kind {
    fn code(self) -> u16 {
        match self {
            Kind::V4 => 1,
            Kind::V6 => 28,
        }
    }
}

#[derive(Debug)]
enum Answer {
    Addresses(Vec<IpAddr>),
    Failed(io::Error),
    /// Not an answer to our question.
    Foreign,
    /// Too long for a datagram.
    Cut,
}

/// Writes a question that wants recursion.
fn encode(name: &str, kind: Kind, id: [u8; 2]) -> Option<Vec<u8>> {
    let mut message = vec![id[0], id[1], 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.code().to_be_bytes());
    message.extend([0, 1]);
    (message.len() <= HEADER + 255 + 4).then_some(message)
}

/// Reads an answer. Of a chain of aliases only the addresses at its end count, and a server sends all of it.
fn decode(message: &[u8], question: &[u8], kind: Kind) -> Answer {
    let is_ours = message.len() >= question.len()
        && message[..2] == question[..2]
        && message[2] & 0x80 != 0
        && message[4..6] == [0, 1]
        && message[HEADER..question.len()].eq_ignore_ascii_case(&question[HEADER..]);
    if !is_ours {
        return Answer::Foreign;
    }
    if message[2] & 0x02 != 0 {
        return Answer::Cut;
    }
    match message[3] & 0x0f {
        0 => {}
        3 => return Answer::Failed(io::Error::new(io::ErrorKind::NotFound, "no such host")),
        code => return Answer::Failed(io::Error::other(format!("the name server answers with error {code}"))),
    }
    let count = u16::from_be_bytes([message[6], message[7]]);
    match addresses(message, question.len(), count, kind) {
        Some(addresses) => Answer::Addresses(addresses),
        None => Answer::Failed(invalid("the name server's answer is damaged")),
    }
}

/// Reads an answer out of memory, for fuzz targets: also one whose beginning is right.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(bytes: &[u8]) {
    for kind in [Kind::V4, Kind::V6] {
        let Some(question) = encode("registry.example", kind, [1, 2]) else { return };
        decode(bytes, &question, kind);
        let mut answer = question.clone();
        answer[2] |= 0x80;
        answer.extend(bytes);
        decode(&answer, &question, kind);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        in_hosts(text, "registry.example");
        Configuration::parse(text);
        encode(text, Kind::V4, [0, 0]);
    }
}

fn addresses(message: &[u8], mut position: usize, count: u16, kind: Kind) -> Option<Vec<IpAddr>> {
    let mut found = BTreeSet::new();
    let mut order = Vec::new();
    for _ in 0..count {
        position = skip_name(message, position)?;
        let fixed = message.get(position..position + 10)?;
        let record = u16::from_be_bytes([fixed[0], fixed[1]]);
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = message.get(position + 10..position + 10 + length)?;
        position += 10 + length;
        if record != kind.code() {
            continue;
        }
        let address: IpAddr = match kind {
            Kind::V4 => <[u8; 4]>::try_from(data).ok()?.into(),
            Kind::V6 => <[u8; 16]>::try_from(data).ok()?.into(),
        };
        if found.insert(address) {
            order.push(address);
        }
    }
    Some(order)
}

/// Returns where a name ends: at its last label, or at a pointer to an earlier one.
fn skip_name(message: &[u8], mut position: usize) -> Option<usize> {
    loop {
        match *message.get(position)? {
            0 => return Some(position + 1),
            length if length & 0xc0 == 0xc0 => return Some(position + 2),
            length if length & 0xc0 == 0 => position += 1 + usize::from(length),
            _ => return None,
        }
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

const PORT: u16 = 53;
const HEADER: usize = 12;
const MAX_SERVERS: usize = 3;
/// How long an answer is used.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long it is that it has none.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// An answer with an alias and an address, as servers write it.
    fn answer(question: &[u8], records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = question.to_vec();
        message[2] |= 0x80;
        message[7] = u8::try_from(records.len()).unwrap();
        for (kind, data) in records {
            message.extend([0xc0, 12]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            message.extend(*data);
        }
        message
    }

    #[test]
    fn a_name_is_asked_for_over_both_protocols() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = std::net::TcpListener::bind(address).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            loop {
                let (count, from) = udp.recv_from(&mut buffer).unwrap();
                let question = &buffer[..count];
                // Something that is not for us comes first.
                let mut foreign = answer(question, &[(1, &[9, 9, 9, 9])]);
                foreign[0] ^= 1;
                udp.send_to(&foreign, from).unwrap();
                let mut cut = answer(question, &[]);
                cut[2] |= 2;
                udp.send_to(&cut, from).unwrap();
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut question).unwrap();
                let is_v4 = question[question.len() - 3] == 1;
                let record: (u16, &[u8]) = if is_v4 { (1, &[10, 0, 0, 1]) } else { (28, &[0; 16]) };
                let message = answer(&question, &[(5, b"\x01x\0"), record, record]);
                stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&message).unwrap();
            }
        });
        let mut configuration = Configuration::parse("search a.example\noptions timeout:2 attempts:1 ndots:2\n");
        configuration.servers = vec![address];
        let expected: Vec<IpAddr> = vec![Ipv4Addr::new(10, 0, 0, 1).into(), Ipv6Addr::UNSPECIFIED.into()];
        assert_eq!(configuration.resolve("registry.example").unwrap(), expected);
    }

    #[test]
    fn damaged_answers_are_errors_and_never_panics() {
        let question = encode("a.b", Kind::V4, [1, 2]).unwrap();
        let whole = answer(&question, &[(1, &[1, 2, 3, 4])]);
        assert!(matches!(decode(&whole, &question, Kind::V4), Answer::Addresses(found) if found.len() == 1));
        for end in 0..whole.len() {
            assert!(!matches!(decode(&whole[..end], &question, Kind::V4), Answer::Addresses(_)), "{end}");
        }
        for position in 0..whole.len() {
            for value in [0, 0x3f, 0xc0, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = value;
                let _ = decode(&damaged, &question, Kind::V4);
            }
        }
        assert!(encode(&"a".repeat(64), Kind::V4, [0, 0]).is_none());
        assert!(encode("a..b", Kind::V4, [0, 0]).is_none());
    }

    #[test]
    fn files_are_understood() {
        let hosts = "127.0.0.1 localhost # x\n::1 localhost ip6\n10.0.0.1\tReg reg.example\nbad line\n";
        assert_eq!(in_hosts(hosts, "localhost").len(), 2);
        assert_eq!(in_hosts(hosts, "REG"), [IpAddr::from([10, 0, 0, 1])]);
        assert!(in_hosts(hosts, "x").is_empty());
        let configuration =
            Configuration::parse("# c\nnameserver 1.1.1.1\nnameserver fe80::1%eth0\nnameserver x\ndomain d\n");
        assert_eq!(configuration.servers.len(), 2);
        assert_eq!((configuration.search, configuration.dots), (vec!["d".to_owned()], 1));
        assert_eq!(Configuration::parse("").servers[0].ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
    }
}
