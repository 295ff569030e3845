//! Who may do what: nobody asked, passwords, or tokens of a token service that is part of the registry.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::http::Head;
use crate::name::hex;
use crate::response::Response;

/// How a registry tells its users apart.
pub struct Access {
    mode: Mode,
    users: HashMap<String, String>,
    anonymous_reading: bool,
    token_life: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Basic,
    Token,
}

#[derive(Default)]
struct State {
    tokens: HashMap<String, Token>,
    refresh: HashMap<String, String>,
    /// Digests of names and passwords that were right: bcrypt takes its time on purpose.
    proven: HashSet<[u8; 32]>,
}

struct Token {
    expires: Instant,
    /// Repositories and what may be done with them.
    grants: Vec<(String, String)>,
}

/// An htpasswd file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A line has no name, or its password is stored in a form other than bcrypt.
    #[error("line {line} of the password file is not NAME:BCRYPT; make it with `htpasswd -B`")]
    Line {
        /// Its number.
        line: usize,
    },
}

/// Returns a line of an htpasswd file.
pub fn hash_password(name: &str, password: &str) -> io::Result<String> {
    let hash = bcrypt::hash(password, COST).map_err(io::Error::other)?;
    Ok(format!("{name}:{hash}"))
}

/// What is done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Pull,
    Push,
    Delete,
    Catalog,
    /// Only whether there is a registry.
    Base,
}

impl Access {
    /// Everybody may do everything.
    pub fn open() -> Access {
        Access::with_mode(Mode::Open, HashMap::new())
    }

    /// Names and passwords are sent with each request. `htpasswd` is the content of such a file, hashed by bcrypt.
    pub fn basic(htpasswd: &str) -> Result<Access, AccessError> {
        Ok(Access::with_mode(Mode::Basic, parse_users(htpasswd)?))
    }

    /// Names and passwords are exchanged for tokens at `/token`.
    pub fn token(htpasswd: &str) -> Result<Access, AccessError> {
        Ok(Access::with_mode(Mode::Token, parse_users(htpasswd)?))
    }

    /// Everybody may pull; only users may push.
    #[must_use]
    pub fn with_anonymous_reading(self) -> Access {
        Access { anonymous_reading: true, ..self }
    }

    /// Tokens are good for this long.
    #[must_use]
    pub fn with_token_life(self, life: Duration) -> Access {
        Access { token_life: life, ..self }
    }

    fn with_mode(mode: Mode, users: HashMap<String, String>) -> Access {
        Access { mode, users, anonymous_reading: false, token_life: TOKEN_LIFE, state: Mutex::default() }
    }

    /// Makes every token that was given out invalid.
    pub(crate) fn expire_tokens(&self) {
        self.lock().tokens.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows a request or returns the refusal.
    pub(crate) fn check(&self, head: &Head, origin: &str, repository: &str, action: Action) -> Result<(), Response> {
        if self.mode == Mode::Open || (self.mode == Mode::Basic && self.anonymous_reading && action == Action::Pull) {
            return Ok(());
        }
        let authorization = head.header("authorization").unwrap_or("");
        let allowed = match self.mode {
            Mode::Open => true,
            Mode::Basic => self.user_of(authorization).is_some(),
            Mode::Token => self.token_allows(authorization, repository, action),
        };
        if allowed {
            return Ok(());
        }
        let challenge = match self.mode {
            Mode::Token => {
                let scope = scope_of(repository, action).map(|scope| format!(",scope=\"{scope}\"")).unwrap_or_default();
                format!("Bearer realm=\"{origin}/token\",service=\"strata-registry\"{scope}")
            }
            _ => "Basic realm=\"strata-registry\"".to_owned(),
        };
        Err(Response::error(401, "UNAUTHORIZED", "authentication required").with("WWW-Authenticate", challenge))
    }

    fn token_allows(&self, authorization: &str, repository: &str, action: Action) -> bool {
        let Some(token) = authorization.strip_prefix("Bearer ") else { return false };
        let state = self.lock();
        let Some(token) = state.tokens.get(token).filter(|token| token.expires > Instant::now()) else { return false };
        match action {
            Action::Base => true,
            Action::Pull => token.grants.iter().any(|(name, _)| name == repository),
            Action::Push => token.grants.iter().any(|(name, action)| name == repository && action == "push"),
            Action::Delete => token.grants.iter().any(|(name, action)| name == repository && action == "delete"),
            Action::Catalog => token.grants.iter().any(|(name, _)| name == CATALOG),
        }
    }

    /// Returns the user whose name and password these are.
    fn user_of(&self, authorization: &str) -> Option<String> {
        let encoded = authorization.strip_prefix("Basic ")?;
        let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (name, password) = decoded.split_once(':')?;
        self.is_right(name, password).then(|| name.to_owned())
    }

    fn is_right(&self, name: &str, password: &str) -> bool {
        let Some(hash) = self.users.get(name) else { return false };
        let key: [u8; 32] = Sha256::digest(format!("{name}:{password}")).into();
        if self.lock().proven.contains(&key) {
            return true;
        }
        let right = bcrypt::verify(password, hash).unwrap_or(false);
        if right {
            self.lock().proven.insert(key);
        }
        right
    }

    /// Answers a request to the token service.
    pub(crate) fn issue(&self, head: &Head, form: &[(String, String)]) -> Response {
        let field = |name: &str| form.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let authorization = head.header("authorization");
        let user = match (authorization, field("grant_type")) {
            (Some(authorization), _) => match self.user_of(authorization) {
                Some(user) => Some(user),
                None => return unauthorized(),
            },
            (None, Some("refresh_token")) => {
                let known = field("refresh_token").and_then(|token| self.lock().refresh.get(token).cloned());
                match known {
                    Some(user) => Some(user),
                    None => return unauthorized(),
                }
            }
            (None, Some("password")) => match (field("username"), field("password")) {
                (Some(name), Some(password)) if self.is_right(name, password) => Some(name.to_owned()),
                _ => return unauthorized(),
            },
            (None, _) => None,
        };
        let scopes = form.iter().filter(|(name, _)| name == "scope").flat_map(|(_, value)| value.split(' '));
        let mut grants = Vec::new();
        for scope in scopes {
            let Some((name, actions)) = parse_scope(scope) else { continue };
            for action in actions.split(',') {
                if user.is_some() || (self.anonymous_reading && action == "pull") {
                    grants.push((name.to_owned(), action.to_owned()));
                }
            }
        }
        let (Ok(token), Ok(refresh)) = (random(), random()) else {
            return Response::error(500, "UNKNOWN", "no random numbers");
        };
        let mut state = self.lock();
        let expires = Instant::now() + self.token_life;
        state.tokens.insert(token.clone(), Token { expires, grants });
        let mut answer = json!({"token": token, "access_token": token, "expires_in": self.token_life.as_secs()});
        let offline = field("offline_token") == Some("true") || field("access_type") == Some("offline");
        if let Some(user) = user.filter(|_| offline) {
            state.refresh.insert(refresh.clone(), user);
            answer["refresh_token"] = json!(refresh);
        }
        Response::json(200, &answer)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Access").field("mode", &self.mode).finish_non_exhaustive()
    }
}

fn unauthorized() -> Response {
    Response::error(401, "UNAUTHORIZED", "incorrect username or password")
}

fn scope_of(repository: &str, action: Action) -> Option<String> {
    match action {
        Action::Base => None,
        Action::Pull => Some(format!("repository:{repository}:pull")),
        Action::Push => Some(format!("repository:{repository}:pull,push")),
        Action::Delete => Some(format!("repository:{repository}:delete")),
        Action::Catalog => Some(format!("{CATALOG}:*")),
    }
}

/// Splits `repository:NAME:ACTIONS`; the catalog keeps its kind as its name.
fn parse_scope(text: &str) -> Option<(&str, &str)> {
    if let Some(actions) = text.strip_prefix(CATALOG).and_then(|rest| rest.strip_prefix(':')) {
        return Some((CATALOG, actions));
    }
    text.strip_prefix("repository:")?.rsplit_once(':')
}

fn parse_users(text: &str) -> Result<HashMap<String, String>, AccessError> {
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.split_once(':').filter(|(name, hash)| !name.is_empty() && hash.starts_with("$2"));
        let (name, hash) = entry.ok_or(AccessError::Line { line: number + 1 })?;
        users.insert(name.to_owned(), hash.to_owned());
    }
    Ok(users)
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 24];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(hex(&bytes))
}

const CATALOG: &str = "registry:catalog";
const TOKEN_LIFE: Duration = Duration::from_secs(300);
/// What htpasswd takes; low, as the file is private and each check costs.
const COST: u32 = 5;
