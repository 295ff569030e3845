//! Docker's `config.json`: logins of registries, in the file itself or in the helpers that it names.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::error::RegistryError;
use super::settings::DOCKER_HUB;

/// A name and what proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password, or a token that stands for name and password.
    pub secret: Secret,
}

/// What proves a name.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_debug_implementations, reason = "it must not get into a log")]
pub enum Secret {
    /// A password.
    Password(String),
    /// A token that a token service gave out at login.
    IdentityToken(String),
}

impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The file, which need not exist.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    path: Option<PathBuf>,
}

impl Credentials {
    pub(super) fn new(path: Option<PathBuf>) -> Credentials {
        Credentials { path }
    }

    /// Returns the login of a registry, such as `docker.io` or `localhost:5000`.
    pub(super) fn of(&self, registry: &str) -> Result<Option<Login>, RegistryError> {
        let document = self.read()?;
        if let Some(helper) = helper_of(&document, registry) {
            return ask_helper(&helper, registry);
        }
        let Some(auths) = document.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let wanted = server_key(registry);
        let entry = auths
            .get(&wanted)
            .or_else(|| auths.iter().find(|(key, _)| host_of(key) == host_of(&wanted)).map(|(_, entry)| entry));
        entry.map_or(Ok(None), |entry| read_entry(registry, entry))
    }

    /// Keeps a login. Returns where, for the message to the user.
    pub(super) fn store(&self, registry: &str, login: &Login) -> Result<Stored, RegistryError> {
        let mut document = self.read()?;
        let key = server_key(registry);
        if let Some(helper) = helper_of(&document, registry) {
            let (user, secret) = match &login.secret {
                Secret::Password(password) => (login.user.as_str(), password),
                Secret::IdentityToken(token) => (TOKEN_USER, token),
            };
            let message = json!({"ServerURL": key, "Username": user, "Secret": secret});
            run_helper(&helper, "store", &message.to_string())?;
            // Docker notes the server without its secret, so that it is known where logins are.
            insert(&mut document, "auths", &key, json!({}));
            self.write(&document)?;
            return Ok(Stored::InHelper(helper));
        }
        let entry = match &login.secret {
            Secret::Password(password) => {
                json!({"auth": STANDARD.encode(format!("{}:{password}", login.user))})
            }
            Secret::IdentityToken(token) => {
                json!({"auth": STANDARD.encode(format!("{}:", login.user)), "identitytoken": token})
            }
        };
        insert(&mut document, "auths", &key, entry);
        self.write(&document)?;
        Ok(Stored::InFile(self.path.clone().unwrap_or_default()))
    }

    /// Forgets a login; returns whether there was one.
    pub(super) fn erase(&self, registry: &str) -> Result<bool, RegistryError> {
        let mut document = self.read()?;
        let key = server_key(registry);
        let mut known = false;
        if let Some(helper) = helper_of(&document, registry) {
            known |= ask_helper(&helper, registry)?.is_some();
            run_helper(&helper, "erase", &key)?;
        }
        if let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) {
            let keys: Vec<String> = auths.keys().filter(|other| host_of(other) == host_of(&key)).cloned().collect();
            known |= !keys.is_empty();
            for key in &keys {
                auths.remove(key);
            }
            if !keys.is_empty() {
                self.write(&document)?;
            }
        }
        Ok(known)
    }

    fn read(&self) -> Result<Map<String, Value>, RegistryError> {
        let Some(path) = &self.path else { return Ok(Map::new()) };
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            result => result.map_err(|error| wrong(path, &error))?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(document)) => Ok(document),
            Ok(_) => Err(RegistryError::Credentials { reason: format!("{}: not a JSON object", path.display()) }),
            Err(error) => Err(wrong(path, &error)),
        }
    }

    /// Replaces the file, which only its owner may read. Its other keys stay.
    fn write(&self, document: &Map<String, Value>) -> Result<(), RegistryError> {
        let Some(path) = &self.path else {
            return Err(RegistryError::Credentials { reason: "there is no home folder to keep them in".to_owned() });
        };
        // A link stays a link.
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let folder = path.parent().unwrap_or(Path::new("."));
        let write = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            let aside = path.with_extension(format!("json.{}", std::process::id()));
            let _ = fs::remove_file(&aside);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            let mut bytes = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
            serde::Serialize::serialize(document, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&aside, &path)
        };
        write().map_err(|error| wrong(&path, &error))
    }
}

/// Where a login was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In the file, readable for whoever can read it.
    InFile(PathBuf),
    /// By a program.
    InHelper(String),
}

fn wrong(path: &Path, error: &dyn std::error::Error) -> RegistryError {
    RegistryError::Credentials { reason: format!("{}: {error}", path.display()) }
}

fn insert(document: &mut Map<String, Value>, section: &str, key: &str, entry: Value) {
    let section = document.entry(section).or_insert_with(|| json!({}));
    if !section.is_object() {
        *section = json!({});
    }
    if let Some(section) = section.as_object_mut() {
        section.insert(key.to_owned(), entry);
    }
}

/// What a registry is called in the file.
fn server_key(registry: &str) -> String {
    if registry == DOCKER_HUB { DOCKER_HUB_KEY.to_owned() } else { registry.to_owned() }
}

/// The host of a key, some of which are addresses.
fn host_of(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    key.split('/').next().unwrap_or(key)
}

fn helper_of(document: &Map<String, Value>, registry: &str) -> Option<String> {
    let helpers = document.get("credHelpers").and_then(Value::as_object);
    let named = helpers.and_then(|helpers| helpers.get(&server_key(registry)).or_else(|| helpers.get(registry)));
    let name = named.or_else(|| document.get("credsStore"))?.as_str()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn read_entry(registry: &str, entry: &Value) -> Result<Option<Login>, RegistryError> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let (mut user, mut password) = (text("username"), text("password"));
    if let Some(encoded) = text("auth") {
        let reason = || RegistryError::Credentials { reason: format!("the entry of {registry} cannot be decoded") };
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| reason())?;
        let decoded = String::from_utf8(decoded).map_err(|_| reason())?;
        let (name, secret) = decoded.split_once(':').ok_or_else(reason)?;
        user = Some(name.to_owned());
        password = Some(secret.trim_end_matches('\0').to_owned());
    }
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Login { user: user.unwrap_or_default(), secret: Secret::IdentityToken(token) }));
    }
    Ok(user.zip(password).map(|(user, password)| Login { user, secret: Secret::Password(password) }))
}

fn ask_helper(helper: &str, registry: &str) -> Result<Option<Login>, RegistryError> {
    let Some(answer) = run_helper(helper, "get", &server_key(registry))? else { return Ok(None) };
    let broken = || RegistryError::Credentials { reason: format!("{PREFIX}{helper}: its answer cannot be understood") };
    let answer: Value = serde_json::from_str(&answer).map_err(|_| broken())?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(broken);
    let (user, secret) = (text("Username")?, text("Secret")?);
    let secret = if user == TOKEN_USER { Secret::IdentityToken(secret) } else { Secret::Password(secret) };
    Ok(Some(Login { user, secret }))
}

/// Runs a helper; `None` if it says that it does not have what is asked for.
fn run_helper(helper: &str, action: &str, input: &str) -> Result<Option<String>, RegistryError> {
    let program = format!("{PREFIX}{helper}");
    let failed = |reason: String| RegistryError::Credentials { reason: format!("{program}: {reason}") };
    if helper.contains('/') {
        return Err(failed("a helper is named without its path".to_owned()));
    }
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says why by how it ends.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(Some(text));
    }
    if text.contains("credentials not found") || (action == "erase" && text.contains("not found")) {
        return Ok(None);
    }
    Err(failed(if text.is_empty() { output.status.to_string() } else { text }))
}

const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// What helpers call the user where the secret is a token.
const TOKEN_USER: &str = "<token>";
const PREFIX: &str = "docker-credential-";

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> Login {
        Login { user: user.to_owned(), secret: Secret::Password(password.to_owned()) }
    }

    #[test]
    fn logins_are_kept_beside_what_else_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker/config.json");
        let credentials = Credentials::new(Some(path.clone()));
        assert_eq!(credentials.of("docker.io").unwrap(), None);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, r#"{"detachKeys": "ctrl-x"}"#).unwrap();
        credentials.store("docker.io", &login("me", "p:w")).unwrap();
        credentials.store("localhost:5000", &login("you", "x")).unwrap();
        let token = Login { user: "t".to_owned(), secret: Secret::IdentityToken("id".to_owned()) };
        credentials.store("ghcr.io", &token).unwrap();
        assert_eq!(credentials.of("docker.io").unwrap(), Some(login("me", "p:w")));
        assert_eq!(credentials.of("localhost:5000").unwrap(), Some(login("you", "x")));
        assert_eq!(credentials.of("ghcr.io").unwrap(), Some(token));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("ctrl-x") && text.contains("https://index.docker.io/v1/"), "{text}");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(credentials.erase("docker.io").unwrap());
        assert!(!credentials.erase("docker.io").unwrap());
        assert_eq!(credentials.of("docker.io").unwrap(), None);
    }

    #[test]
    fn entries_of_other_tools_are_understood() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let auth = STANDARD.encode("a:b");
        let text = json!({"auths": {
            "https://reg.example/v1/": {"auth": auth}, "plain.example": {"username": "u", "password": "p"},
            "empty.example": {}, "bad.example": {"auth": "***"},
        }});
        fs::write(&path, text.to_string()).unwrap();
        let credentials = Credentials::new(Some(path));
        assert_eq!(credentials.of("reg.example").unwrap(), Some(login("a", "b")));
        assert_eq!(credentials.of("plain.example").unwrap(), Some(login("u", "p")));
        assert_eq!(credentials.of("empty.example").unwrap(), None);
        assert!(credentials.of("bad.example").is_err());
    }
}
