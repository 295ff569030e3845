//! The client: connections, tokens and logins shared by everything that talks to registries.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, Login, Secret, Stored};
use super::error::RegistryError;
use super::http::{Http, Payload, Request, Response};
use super::settings::{DOCKER_HUB, Settings};
use super::tls::Proof;
use super::url::{Origin, Scheme, Url, escape};
use crate::progress::{Event, Progress};

/// Talks to registries. It keeps connections and tokens, so one is used for everything that a process does.
#[derive(Debug)]
pub struct RegistryClient {
    pub(super) http: Http,
    credentials: Credentials,
    /// By registry and scope.
    tokens: Mutex<HashMap<(Origin, String), Authorization>>,
    /// Hosts that turned out not to encrypt.
    plain: Mutex<HashSet<String>>,
}

/// What requests carry to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authorization {
    header: String,
    expires: Option<Instant>,
}

/// One place that may have what a registry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) origin: Origin,
    pub(super) proof: Proof,
    /// Whose login is used.
    pub(super) registry: String,
    /// Whether this is the unencrypted form of the endpoint before it.
    pub(super) is_fallback: bool,
    /// Whether the registry itself stands behind this one, so that nobody need be patient with it.
    pub(super) is_mirror: bool,
    /// Whether unencrypted addresses may be followed from here.
    pub(super) insecure: bool,
}

impl Endpoint {
    /// Returns whether it is worth trying after what came before it failed so. The unencrypted form is only for servers that do
    /// not encrypt, not for other failures.
    pub(super) fn may_help(&self, error: &RegistryError) -> bool {
        !self.is_fallback || matches!(error, RegistryError::Tls { .. } | RegistryError::Connect { .. })
    }
}

/// A repository at an endpoint, and what is to be done there.
#[derive(Clone, Debug)]
pub(super) struct Remote<'c> {
    pub(super) client: &'c RegistryClient,
    pub(super) endpoint: Endpoint,
    /// Scopes to ask a token service for; what the challenge says if there are none.
    pub(super) scopes: Vec<String>,
    /// A login to use instead of the kept one.
    pub(super) login: Option<Login>,
}

impl RegistryClient {
    /// Makes a client.
    pub fn new(settings: Settings) -> RegistryClient {
        let credentials = Credentials::new(settings.credentials.clone());
        RegistryClient { http: Http::new(settings), credentials, tokens: Mutex::default(), plain: Mutex::default() }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.http.settings
    }

    /// Returns the login that is kept for a registry.
    pub fn kept_login(&self, registry: &str) -> Result<Option<Login>, RegistryError> {
        self.credentials.of(registry)
    }

    /// Tries a login and keeps it if the registry accepts it.
    pub fn login(&self, registry: &str, login: &Login) -> Result<Stored, RegistryError> {
        let accepted = self.first_of(&self.endpoints(registry, false), |endpoint| {
            let remote =
                Remote { client: self, endpoint: endpoint.clone(), scopes: Vec::new(), login: Some(login.clone()) };
            let url = Url::new(endpoint.origin.clone(), "/v2/");
            let response = remote.call(&url, "GET", &[], None)?;
            let identity = remote.identity_token()?;
            response.body.drain();
            Ok(identity)
        })?;
        let kept = match accepted {
            Some(token) => Login { user: login.user.clone(), secret: Secret::IdentityToken(token) },
            None => login.clone(),
        };
        self.credentials.store(registry, &kept)
    }

    /// Forgets a login; returns whether there was one.
    pub fn logout(&self, registry: &str) -> Result<bool, RegistryError> {
        self.credentials.erase(registry)
    }

    /// Returns where to look for what a registry has: its mirrors, then the registry itself.
    pub(super) fn endpoints(&self, registry: &str, with_mirrors: bool) -> Vec<Endpoint> {
        let mut found = Vec::new();
        let mirrors = self.settings().mirrors.get(registry).filter(|_| with_mirrors);
        for mirror in mirrors.into_iter().flatten() {
            let (scheme, authority) = match mirror.split_once("://") {
                Some(("http", rest)) => (Some(Scheme::Http), rest),
                Some((_, rest)) => (Some(Scheme::Https), rest),
                None => (None, mirror.as_str()),
            };
            self.add_endpoints(authority.trim_end_matches('/'), scheme, authority.trim_end_matches('/'), &mut found);
        }
        found.iter_mut().for_each(|endpoint| endpoint.is_mirror = true);
        let authority = if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry };
        self.add_endpoints(authority, None, registry, &mut found);
        found
    }

    fn add_endpoints(&self, authority: &str, scheme: Option<Scheme>, registry: &str, found: &mut Vec<Endpoint>) {
        let Some(origin) = Origin::parse(scheme.unwrap_or(Scheme::Https), authority) else { return };
        let insecure = scheme == Some(Scheme::Http) || (registry != DOCKER_HUB && self.http.is_insecure(&origin));
        let known_plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner).contains(authority);
        let mut add = |origin: Origin, is_fallback| {
            let proof = if insecure { Proof::Waived } else { Proof::Required };
            let registry = registry.to_owned();
            found.push(Endpoint { origin, proof, registry, is_fallback, is_mirror: false, insecure });
        };
        if origin.scheme == Scheme::Http {
            add(origin, false);
            return;
        }
        let plain = Origin::parse(Scheme::Http, authority).filter(|_| insecure && scheme.is_none());
        if !known_plain || plain.is_none() {
            add(origin, false);
        }
        if let Some(plain) = plain {
            add(plain, !known_plain);
        }
    }

    /// Asks one endpoint after the other until one has what is wanted. The last one's error is told: that is the registry
    /// itself.
    pub(super) fn first_of<T>(
        &self,
        endpoints: &[Endpoint],
        mut ask: impl FnMut(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut last: Option<RegistryError> = None;
        for endpoint in endpoints {
            if last.as_ref().is_some_and(|error| !endpoint.may_help(error)) {
                continue;
            }
            match ask(endpoint) {
                Ok(value) => {
                    if endpoint.is_fallback {
                        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
                        plain.insert(endpoint.registry.clone());
                    }
                    return Ok(value);
                }
                Err(error) if error.is_of_this_server() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Location {
            url: endpoints.first().map(|endpoint| endpoint.origin.to_string()).unwrap_or_default(),
            source: super::url::InvalidUrl { text: String::new() },
        }))
    }

    /// As [`RegistryClient::first_of`]; what may succeed later is repeated, but not at a mirror.
    pub(super) fn patiently_first_of<T>(
        &self,
        endpoints: &[Endpoint],
        (progress, what): (&dyn Progress, &str),
        mut ask: impl FnMut(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        self.first_of(endpoints, |endpoint| match endpoint.is_mirror {
            true => ask(endpoint),
            false => self.patiently(progress, what, || ask(endpoint)),
        })
    }

    /// Repeats what may succeed later, with growing pauses, or as the server asks.
    pub(super) fn patiently<T>(
        &self,
        progress: &dyn Progress,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                // Nobody is there, so the user should know at once; in the middle of a download it is worth waiting.
                Err(error @ (RegistryError::Connect { .. } | RegistryError::Resolve { .. })) => return Err(error),
                Err(error) => {
                    failures += 1;
                    self.pause(progress, what, failures, error)?;
                }
            }
        }
    }

    /// Waits before the next attempt, or gives up.
    pub(super) fn pause(
        &self,
        progress: &dyn Progress,
        what: &str,
        failures: u32,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let timeouts = &self.settings().timeouts;
        if !error.is_transient() || failures > timeouts.retries {
            return Err(error);
        }
        let asked = match &error {
            RegistryError::Status { retry_after: Some(seconds), .. } => Some(Duration::from_secs(*seconds)),
            _ => None,
        };
        if asked.is_some_and(|asked| asked > timeouts.longest_wait) {
            return Err(error);
        }
        let backoff = timeouts.retry_delay.saturating_mul(1 << failures.saturating_sub(1).min(6));
        // Half of it by chance: clients that failed together should not come back together.
        let mut random = [0];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let backoff = backoff / 2 + backoff.saturating_mul(random[0].into()) / 512;
        let delay = asked.unwrap_or(backoff);
        progress.report(Event::Retrying { layer: what, reason: &error.to_string(), delay });
        thread::sleep(delay);
        Ok(())
    }
}

impl Remote<'_> {
    /// Sends a request with what it needs to be allowed, follows redirects, and takes any refusal for an error.
    pub(super) fn call(
        &self,
        url: &Url,
        method: &'static str,
        headers: &[(&'static str, String)],
        body: Option<&[u8]>,
    ) -> Result<Response, RegistryError> {
        accepted(self.call_raw(url, method, headers, body)?)
    }

    /// As [`Remote::call`], but any answer but a demand for authentication is returned.
    fn call_raw(
        &self,
        url: &Url,
        method: &'static str,
        headers: &[(&'static str, String)],
        body: Option<&[u8]>,
    ) -> Result<Response, RegistryError> {
        let mut renewals = 0;
        loop {
            let authorization = self.authorization();
            let response = self.follow(url, method, headers, body, authorization.as_deref())?;
            // Only the registry itself may say who gets the login, not whoever a redirect or an upload led to.
            if response.status != 401 || response.url.origin != self.endpoint.origin || renewals == MAX_RENEWALS {
                return Ok(response);
            }
            let challenges = challenge::parse(&response.headers("www-authenticate"));
            let shown = response.headers("www-authenticate").join(", ");
            if shown.is_empty() {
                return Ok(response);
            }
            if self.authorization() == authorization {
                self.authenticate(url, &challenges, &shown)?;
            }
            // The same again would be refused again.
            if self.authorization() == authorization {
                return Ok(response);
            }
            response.body.drain();
            renewals += 1;
        }
    }

    /// Sends a body as a stream. It can only be sent once, so whoever calls this has been allowed something before.
    pub(super) fn send_stream(
        &self,
        url: &Url,
        method: &'static str,
        headers: &[(&'static str, String)],
        body: Payload<'_>,
    ) -> Result<Response, RegistryError> {
        let mut headers = headers.to_vec();
        // An upload may be sent to another host, which has its leave in the address.
        if url.origin == self.endpoint.origin {
            headers.extend(self.authorization().map(|authorization| ("Authorization", authorization)));
        }
        let request = Request { method, headers, body };
        accepted(self.client.http.send(url, self.proof_of(&url.origin), request)?)
    }

    pub(super) fn follow(
        &self,
        url: &Url,
        method: &'static str,
        headers: &[(&'static str, String)],
        body: Option<&[u8]>,
        authorization: Option<&str>,
    ) -> Result<Response, RegistryError> {
        let mut at = url.clone();
        for _ in 0..MAX_REDIRECTS {
            let mut headers = headers.to_vec();
            if let Some(authorization) = authorization.filter(|_| at.origin == self.endpoint.origin) {
                headers.push(("Authorization", authorization.to_owned()));
            }
            let body = body.map_or(Payload::None, Payload::Bytes);
            let response = self.client.http.send(&at, self.proof_of(&at.origin), Request { method, headers, body })?;
            if !matches!(response.status, 301 | 302 | 303 | 307 | 308) || !matches!(method, "GET" | "HEAD") {
                return Ok(response);
            }
            let Some(location) = response.header("location") else { return Ok(response) };
            let next = self.led_to(&at, location)?;
            response.body.drain();
            at = next;
        }
        Err(RegistryError::TooManyRedirects { url: url.shown() })
    }

    /// Returns where a server sends us, which is from an encrypted address never to a plain one.
    pub(super) fn led_to(&self, at: &Url, location: &str) -> Result<Url, RegistryError> {
        let next = at.join(location).map_err(|source| RegistryError::Location { url: at.shown(), source })?;
        let downgrade = at.origin.scheme == Scheme::Https && next.origin.scheme == Scheme::Http;
        if downgrade && !self.endpoint.insecure {
            return Err(RegistryError::Downgrade { url: at.shown(), to: next.origin.to_string() });
        }
        Ok(next)
    }

    fn proof_of(&self, origin: &Origin) -> Proof {
        if *origin == self.endpoint.origin {
            return self.endpoint.proof;
        }
        let waived = self.client.http.is_insecure(origin);
        if waived { Proof::Waived } else { Proof::Required }
    }

    fn token_key(&self) -> (Origin, String) {
        (self.endpoint.origin.clone(), self.scopes.join(" "))
    }

    /// Returns what requests carry, unless it is about to expire.
    fn authorization(&self) -> Option<String> {
        let tokens = self.client.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let authorization = tokens.get(&self.token_key())?;
        let usable = authorization.expires.is_none_or(|expires| expires > Instant::now() + EXPIRY_MARGIN);
        usable.then(|| authorization.header.clone())
    }

    fn login(&self) -> Result<Option<Login>, RegistryError> {
        match &self.login {
            Some(login) => Ok(Some(login.clone())),
            None => self.client.credentials.of(&self.endpoint.registry),
        }
    }

    /// Does what a challenge asks for.
    fn authenticate(&self, url: &Url, challenges: &[Challenge], shown: &str) -> Result<(), RegistryError> {
        let login = self.login()?;
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let authorization = match (bearer.or(challenges.first()), login) {
            (Some(Challenge::Bearer { realm, service, scope }), login) => {
                let scopes = match self.scopes.is_empty() {
                    true => scope.iter().cloned().collect(),
                    false => self.scopes.clone(),
                };
                self.fetch_token(url, realm, service.as_deref(), &scopes, login.as_ref())?
            }
            (Some(Challenge::Basic), Some(Login { user, secret: Secret::Password(password) })) => {
                let header = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                Authorization { header, expires: None }
            }
            // Nothing to try: the refusal itself is what the user should see.
            (Some(Challenge::Basic), _) => return Ok(()),
            (None, _) => {
                return Err(RegistryError::Challenge { url: url.shown(), challenge: shown.to_owned() });
            }
        };
        let mut tokens = self.client.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(self.token_key(), authorization);
        Ok(())
    }

    fn fetch_token(
        &self,
        url: &Url,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        login: Option<&Login>,
    ) -> Result<Authorization, RegistryError> {
        let answer = self.ask_token_service(url, realm, service, scopes, login, false)?;
        let text = |key: &str| answer.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let no_token = || RegistryError::NoToken { realm: realm.to_owned() };
        let token = text("token").or_else(|| text("access_token")).ok_or_else(no_token)?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(no_token());
        }
        // Sixty seconds is what the specification says where nothing is said.
        let life = answer.get("expires_in").and_then(Value::as_u64).unwrap_or(60).max(1);
        let life = Duration::from_secs(life.min(MAX_TOKEN_LIFE));
        let life = if life <= EXPIRY_MARGIN * 2 { life + EXPIRY_MARGIN } else { life };
        Ok(Authorization { header: format!("Bearer {token}"), expires: Some(Instant::now() + life) })
    }

    fn ask_token_service(
        &self,
        url: &Url,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        login: Option<&Login>,
        offline: bool,
    ) -> Result<Value, RegistryError> {
        let mut at: Url = realm.parse().map_err(|source| RegistryError::Location { url: url.shown(), source })?;
        if at.origin.scheme == Scheme::Http && !self.endpoint.insecure {
            return Err(RegistryError::Realm { url: url.shown(), realm: at.shown() });
        }
        let mut headers = Vec::new();
        let proof = self.proof_of(&at.origin);
        let response = match login {
            Some(Login { secret: Secret::IdentityToken(token), .. }) => {
                let mut form = format!("grant_type=refresh_token&refresh_token={}&client_id=strata", escape(token));
                if let Some(service) = service {
                    form.push_str(&format!("&service={}", escape(service)));
                }
                form.push_str(&format!("&scope={}", escape(&scopes.join(" "))));
                headers.push(("Content-Type", "application/x-www-form-urlencoded".to_owned()));
                let body = Payload::Bytes(form.as_bytes());
                self.client.http.send(&at, proof, Request { method: "POST", headers, body })?
            }
            login => {
                if let Some(service) = service {
                    at = at.with_parameter("service", service);
                }
                for scope in scopes {
                    at = at.with_parameter("scope", scope);
                }
                if offline {
                    at = at.with_parameter("offline_token", "true").with_parameter("client_id", "strata");
                }
                if let Some(Login { user, secret: Secret::Password(password) }) = login {
                    at = at.with_parameter("account", user);
                    headers.push(("Authorization", format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))));
                }
                self.client.http.send(&at, proof, Request { method: "GET", headers, body: Payload::None })?
            }
        };
        if response.status != 200 {
            return Err(refusal(response));
        }
        let bytes = response.read_all(MAX_TOKEN)?;
        serde_json::from_slice(&bytes).map_err(|_| RegistryError::NoToken { realm: realm.to_owned() })
    }

    /// Asks for a token that stands for name and password, where the registry has a token service that gives such.
    fn identity_token(&self) -> Result<Option<String>, RegistryError> {
        let url = Url::new(self.endpoint.origin.clone(), "/v2/");
        let response = self.follow(&url, "GET", &[], None, None)?;
        let challenges = challenge::parse(&response.headers("www-authenticate"));
        response.body.drain();
        let bearer = challenges.into_iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let Some(Challenge::Bearer { realm, service, .. }) = bearer else { return Ok(None) };
        let answer = self.ask_token_service(&url, &realm, service.as_deref(), &[], self.login.as_ref(), true)?;
        let token = answer.get("refresh_token").and_then(Value::as_str).filter(|token| !token.is_empty());
        Ok(token.map(str::to_owned))
    }
}

/// Takes every answer but a success for an error.
pub(super) fn accepted(response: Response) -> Result<Response, RegistryError> {
    if (200..300).contains(&response.status) { Ok(response) } else { Err(refusal(response)) }
}

/// Makes an error of a refusal, in the server's words where it has some.
pub(super) fn refusal(response: Response) -> RegistryError {
    let (url, status) = (response.url.shown(), response.status);
    let retry_after = response.header("retry-after").and_then(|text| text.trim().parse().ok());
    // What the server adds is only for people, and if it cannot be read there is still the status.
    let bytes = response.read_all(MAX_REFUSAL).unwrap_or_default();
    let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let errors = document.get("errors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |error: &Value, key: &str| error.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let codes: Vec<String> = errors.iter().map(|error| text(error, "code")).collect();
    let parts: Vec<String> = errors
        .iter()
        .map(|error| {
            let code = text(error, "code").to_lowercase().replace('_', " ");
            let code = if code == "toomanyrequests" || !code.is_empty() { code } else { "unknown".to_owned() };
            match text(error, "message") {
                message if message.is_empty() => code,
                message => format!("{code}: {message}"),
            }
        })
        .collect();
    let message = match (parts.is_empty(), status) {
        (false, _) => parts.join("; "),
        (true, 401) => "unauthorized: authentication required".to_owned(),
        (true, 429) => format!("toomanyrequests: {url} asks for patience"),
        (true, _) => {
            let detail = document.get("details").or_else(|| document.get("message")).and_then(Value::as_str);
            let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
            format!("unexpected status {status} from {url}{detail}")
        }
    };
    RegistryError::Status { url, status, codes, message, retry_after }
}

const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
const MAX_REDIRECTS: usize = 10;
/// A token may expire once more between its renewal and its use.
const MAX_RENEWALS: usize = 2;
const MAX_TOKEN: u64 = 1 << 20;
const MAX_REFUSAL: u64 = 64 << 10;
const MAX_TOKEN_LIFE: u64 = 24 * 3600;
/// A token that expires sooner is renewed before it is used.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);
