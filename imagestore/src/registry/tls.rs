//! Whom to trust: the system's authorities, and what the folders of certificates say about single hosts.
//!
//! As Docker does: `certs.d/HOST[:PORT]/*.crt` are authorities beside the system's, `*.cert` with `*.key` of the same name
//! are certificates to show.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::connect::read_certificate_file;
use super::error::RegistryError;
use super::url::Origin;

/// Whether the other side must prove who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Proof {
    Required,
    /// For registries that were declared insecure.
    Waived,
}

/// Works out how to encrypt connections to a host.
pub(super) fn client_config(folders: &[PathBuf], origin: &Origin, proof: Proof) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryError::Tls { address: origin.authority(), reason: error.to_string() })?;
    let own = HostFiles::find(folders, origin)?;
    let builder = match proof {
        Proof::Required => {
            let mut roots = system_roots().clone();
            for path in &own.authorities {
                add_authorities(&mut roots, path)?;
            }
            builder.with_root_certificates(roots)
        }
        Proof::Waived => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let mut config = match own.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let wrong =
                |path: &Path, reason: String| RegistryError::Certificate { path: path.display().to_string(), reason };
            let chain = CertificateDer::pem_slice_iter(&read_certificate_file(&certificate)?)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| wrong(&certificate, error.to_string()))?;
            let secret = PrivateKeyDer::from_pem_slice(&read_certificate_file(&key)?)
                .map_err(|error| wrong(&key, error.to_string()))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| wrong(&certificate, error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What the folders have for one host.
#[derive(Debug, Default)]
struct HostFiles {
    authorities: Vec<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
}

impl HostFiles {
    fn find(folders: &[PathBuf], origin: &Origin) -> Result<HostFiles, RegistryError> {
        let mut found = HostFiles::default();
        // The port may be said where it is the usual one.
        let mut names = vec![origin.authority(), origin.authority_with_port()];
        names.dedup();
        for folder in folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))) {
            // A folder that is not there says nothing.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                match path.extension().and_then(|extension| extension.to_str()) {
                    Some("crt") => found.authorities.push(path),
                    Some("cert") => {
                        let key = path.with_extension("key");
                        if !key.exists() {
                            let reason = format!("missing key {} for client certificate", key.display());
                            return Err(RegistryError::Certificate { path: path.display().to_string(), reason });
                        }
                        found.identity.get_or_insert((path, key));
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }
}

/// Returns the authorities that this machine trusts, from where Go's programs look for them.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let files = named.into_iter().chain(BUNDLES.iter().map(PathBuf::from));
        if let Some(path) = files.into_iter().find(|path| path.exists()) {
            // One that cannot be read, or of an unknown kind, is not trusted; the others are.
            let bytes = fs::read(path).unwrap_or_default();
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&bytes).flatten());
        }
        roots
    })
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), RegistryError> {
    let wrong = |reason: String| RegistryError::Certificate { path: path.display().to_string(), reason };
    for certificate in CertificateDer::pem_slice_iter(&read_certificate_file(path)?) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

/// Takes every certificate, but still checks that the other side has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
