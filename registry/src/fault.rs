//! Misbehaving on demand: what real registries, proxies and networks have done to clients.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::http::Head;
use crate::response::Delivery;

/// One way to misbehave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Answers with this status, and with `Retry-After` in seconds if there is one.
    Status {
        /// The status.
        code: u16,
        /// The seconds to wait.
        retry_after: Option<u64>,
    },
    /// Closes the connection without an answer.
    Reset,
    /// Answers with something that is not HTTP.
    Garbage,
    /// Closes the connection after so many bytes of the body.
    Cut(u64),
    /// Closes the connection at a random byte of the body; the number is the seed.
    CutRandomly(u64),
    /// Stops sending after so many bytes of the body, for this long.
    Stall(u64, Duration),
    /// Sends so many bytes each second.
    Trickle(u64),
    /// Sends this byte of the body wrong, so that the digest does not fit.
    Flip(u64),
    /// States a length that is wrong by this much.
    Length(i64),
    /// Leaves out the last bytes of the body and states the length that is left.
    Shorten(u64),
    /// Sends chunks instead of a length.
    Chunked,
    /// Leaves out a header.
    Without(String),
    /// Sends this header with this value.
    Header(String, String),
    /// Ignores that a range was asked for.
    IgnoreRange,
    /// Refuses ranges.
    RefuseRange,
    /// States another range than it sends.
    WrongRange,
    /// Sends the client elsewhere: the path is appended to this address.
    Redirect(String),
    /// Sends the client in a circle.
    RedirectLoop,
    /// Takes back every token that was given out, before the request is looked at.
    ExpireTokens,
    /// Accepts a part of an upload and throws it away.
    LoseUpload,
    /// Closes the connection after so many bytes of what is uploaded; those stay.
    CutUpload(u64),
    /// Does what is asked and answers a success with this status.
    Answer(u16),
    /// Writes a manifest anew, so that it means the same and has another digest.
    Reserialize,
    /// Does not mount blobs of other repositories, but begins an upload.
    RefuseMount,
}

/// A rule: which requests are answered wrongly, how often, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The method; any if `None`.
    pub method: Option<String>,
    /// The path; `*` stands for anything.
    pub path: String,
    /// How many such requests are answered properly first.
    pub skip: u32,
    /// How many are answered wrongly after that; all if `None`.
    pub times: Option<u32>,
    /// How.
    pub misbehaviour: Misbehaviour,
}

impl Fault {
    /// All requests of a method for a path are answered wrongly.
    pub fn always(method: &str, path: &str, misbehaviour: Misbehaviour) -> Fault {
        Fault { method: Some(method.to_owned()), path: path.to_owned(), skip: 0, times: None, misbehaviour }
    }

    /// The next request of a method for a path is answered wrongly.
    pub fn once(method: &str, path: &str, misbehaviour: Misbehaviour) -> Fault {
        Fault { times: Some(1), ..Fault::always(method, path, misbehaviour) }
    }

    fn fits(&self, head: &Head) -> bool {
        self.method.as_ref().is_none_or(|method| *method == head.method) && glob(&self.path, &head.path)
    }
}

/// A text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid fault {text:?}, expected '[METHOD] PATH [skip=N] [times=N] KIND[=VALUE]'")]
pub struct InvalidFault {
    text: String,
}

impl FromStr for Fault {
    type Err = InvalidFault;

    /// Parses `[METHOD] PATH [skip=N] [times=N] KIND[=VALUE]`, such as `GET /v2/*/blobs/* times=3 cut=1000`.
    fn from_str(text: &str) -> Result<Fault, InvalidFault> {
        let invalid = || InvalidFault { text: text.to_owned() };
        let mut words = text.split_whitespace().peekable();
        let method = words.next_if(|word| !word.starts_with('/')).map(str::to_owned);
        let path = words.next().ok_or_else(invalid)?.to_owned();
        let (mut skip, mut times, mut misbehaviour) = (0, None, None);
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "skip" => skip = value.parse().map_err(|_| invalid())?,
                "times" => times = Some(value.parse().map_err(|_| invalid())?),
                name => misbehaviour = Some(parse_misbehaviour(name, value).ok_or_else(invalid)?),
            }
        }
        Ok(Fault { method, path, skip, times, misbehaviour: misbehaviour.ok_or_else(invalid)? })
    }
}

fn parse_misbehaviour(name: &str, value: &str) -> Option<Misbehaviour> {
    let number = || value.parse::<u64>().ok();
    let pair = || value.split_once(':');
    Some(match name {
        "status" => match pair() {
            Some((code, after)) => {
                Misbehaviour::Status { code: code.parse().ok()?, retry_after: Some(after.parse().ok()?) }
            }
            None => Misbehaviour::Status { code: value.parse().ok()?, retry_after: None },
        },
        "reset" => Misbehaviour::Reset,
        "garbage" => Misbehaviour::Garbage,
        "cut" => Misbehaviour::Cut(number()?),
        "cut-randomly" => Misbehaviour::CutRandomly(number()?),
        "stall" => {
            let (after, seconds) = pair()?;
            Misbehaviour::Stall(after.parse().ok()?, Duration::from_secs_f64(seconds.parse().ok()?))
        }
        "trickle" => Misbehaviour::Trickle(number()?),
        "flip" => Misbehaviour::Flip(number()?),
        "length" => Misbehaviour::Length(value.parse().ok()?),
        "shorten" => Misbehaviour::Shorten(number()?),
        "chunked" => Misbehaviour::Chunked,
        "without" => Misbehaviour::Without(value.to_ascii_lowercase()),
        "header" => pair().map(|(name, value)| Misbehaviour::Header(name.to_owned(), value.to_owned()))?,
        "ignore-range" => Misbehaviour::IgnoreRange,
        "refuse-range" => Misbehaviour::RefuseRange,
        "wrong-range" => Misbehaviour::WrongRange,
        "redirect" => Misbehaviour::Redirect(value.to_owned()),
        "redirect-loop" => Misbehaviour::RedirectLoop,
        "expire-tokens" => Misbehaviour::ExpireTokens,
        "lose-upload" => Misbehaviour::LoseUpload,
        "cut-upload" => Misbehaviour::CutUpload(number()?),
        "answer" => Misbehaviour::Answer(value.parse().ok()?),
        "reserialize" => Misbehaviour::Reserialize,
        "refuse-mount" => Misbehaviour::RefuseMount,
        _ => return None,
    })
}

/// The rules of a server, with how often each has been used.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Mutex<Vec<(Fault, u32)>>,
}

impl Faults {
    pub(crate) fn add(&self, fault: Fault) {
        self.lock().push((fault, 0));
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Fault, u32)>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns everything that is to go wrong with a request.
    pub(crate) fn of(&self, head: &Head) -> Vec<Misbehaviour> {
        let mut due = Vec::new();
        for (fault, used) in &mut *self.lock() {
            if !fault.fits(head) {
                continue;
            }
            let number = *used;
            *used = used.saturating_add(1);
            let end = fault.times.map_or(u32::MAX, |times| fault.skip.saturating_add(times));
            if (fault.skip..end).contains(&number) {
                due.push(match &fault.misbehaviour {
                    // Each request is cut elsewhere.
                    Misbehaviour::CutRandomly(seed) => Misbehaviour::CutRandomly(mix(*seed ^ u64::from(number))),
                    other => other.clone(),
                });
            }
        }
        due
    }
}

/// Works out how a body is delivered that way.
pub(crate) fn delivery(faults: &[Misbehaviour], length: u64) -> Delivery {
    let mut delivery = Delivery::default();
    for fault in faults {
        match fault {
            Misbehaviour::Cut(after) => delivery.cut = Some(*after),
            // One byte comes at least: a client gives up if again and again none does.
            Misbehaviour::CutRandomly(number) => delivery.cut = Some((number % length.max(1)).saturating_add(1)),
            Misbehaviour::Stall(after, time) => delivery.stall = Some((*after, *time)),
            Misbehaviour::Trickle(rate) => delivery.rate = Some(*rate),
            Misbehaviour::Flip(at) => delivery.flip = Some(*at),
            Misbehaviour::Length(error) => delivery.length_error = *error,
            Misbehaviour::Shorten(count) => delivery.shortened = *count,
            Misbehaviour::Chunked => delivery.chunked = true,
            Misbehaviour::Without(name) => delivery.without.push(name.clone()),
            Misbehaviour::Header(name, value) => delivery.replaced.push((name.clone(), value.clone())),
            Misbehaviour::WrongRange => {
                delivery.replaced.push(("Content-Range".to_owned(), format!("bytes 7-{}/{}", length + 6, length + 7)));
            }
            _ => {}
        }
    }
    delivery
}

/// Spreads a number over all of its bits (splitmix64).
fn mix(number: u64) -> u64 {
    let mut state = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_parsed() {
        let parse = |text: &str| text.parse::<Fault>();
        assert_eq!(
            parse("GET /v2/*/blobs/* times=3 skip=1 cut=1000").unwrap(),
            Fault { skip: 1, times: Some(3), ..Fault::always("GET", "/v2/*/blobs/*", Misbehaviour::Cut(1000)) }
        );
        let any = parse("/v2/* status=429:2").unwrap();
        assert_eq!(any.method, None);
        assert_eq!(any.misbehaviour, Misbehaviour::Status { code: 429, retry_after: Some(2) });
        assert_eq!(
            parse("GET / stall=5:0.5").unwrap().misbehaviour,
            Misbehaviour::Stall(5, Duration::from_millis(500))
        );
        for text in ["", "GET", "GET /", "GET / x=1", "GET / cut", "GET / times=x cut=1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rules_count_their_requests() {
        let faults = Faults::default();
        faults.add("GET /v2/*/blobs/* skip=1 times=2 reset".parse().unwrap());
        let head = |path: &str| Head { method: "GET".to_owned(), path: path.to_owned(), ..Head::default() };
        let due: Vec<bool> = (0..5).map(|_| !faults.of(&head("/v2/a/blobs/x")).is_empty()).collect();
        assert_eq!(due, [false, true, true, false, false]);
        assert!(faults.of(&head("/v2/a/manifests/x")).is_empty());
    }

    #[test]
    fn patterns_match_whole_paths() {
        for (pattern, text, fits) in [
            ("/v2/", "/v2/", true),
            ("/v2/", "/v2/a", false),
            ("/v2/*", "/v2/", true),
            ("*/blobs/*", "/v2/a/blobs/x", true),
            ("/v2/*/blobs/*x", "/v2/a/b/blobs/sha256:x", true),
            ("/v2/*/blobs/*x", "/v2/a/b/blobs/sha256:y", false),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }
}
