//! TLS from a directory of certificates, as nbdkit, libnbd and QEMU lay it out.

use super::ClientError;
use crate::{NbdUri, UriTransport};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Whom to believe, and who we are.
#[derive(Clone)]
pub(super) struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    /// What the server's certificate must be made out to.
    pub(super) name: ServerName<'static>,
}

impl ClientTls {
    /// Reads what the URI says, else `directory`: `ca-cert.pem`, and where the server wants to
    /// know its clients `client-cert.pem` and `client-key.pem`.
    ///
    /// # Errors
    /// [`ClientError::Tls`] with the file or parameter that is wrong.
    pub(super) fn of(uri: &NbdUri, directory: Option<&Path>) -> Result<Self, ClientError> {
        let mut place = directory.map(Path::to_path_buf);
        let mut host = match &uri.transport {
            UriTransport::Tcp { host, .. } => host.clone(),
            UriTransport::Unix { .. } => "localhost".to_owned(),
        };
        for (key, value) in &uri.tls_parameters {
            match (key.as_str(), value.as_str()) {
                ("tls-certificates", path) => place = Some(PathBuf::from(path)),
                ("tls-hostname", name) => name.clone_into(&mut host),
                ("tls-type", "x509") | ("tls-verify-peer", "1" | "true" | "yes" | "on") => {}
                ("tls-verify-peer", _) => return Err(fault("the server is always verified")),
                (key, _) => return Err(fault(format!("{key} is not supported; use certificates"))),
            }
        }
        let place = place.ok_or_else(|| {
            fault("there is no directory with certificates: name one with --tls-certificates")
        })?;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| fault(format!("{host:?} is no name that a certificate can have")))?;
        let config = config(&place)?;
        Ok(Self { config: Arc::new(config), name })
    }
}

fn config(place: &Path) -> Result<ClientConfig, ClientError> {
    let mut roots = RootCertStore::empty();
    let path = place.join("ca-cert.pem");
    for certificate in certificates(&path)? {
        roots.add(certificate).map_err(|error| in_file(&path, &error))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(error.to_string()))?
        .with_root_certificates(roots);
    let (ours, key) = (place.join("client-cert.pem"), place.join("client-key.pem"));
    if !ours.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|error| in_file(&key, &error))?;
    builder
        .with_client_auth_cert(certificates(&ours)?, secret)
        .map_err(|error| in_file(&ours, &error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, pem::Error>>)
        .map_err(|error| in_file(path, &error))?;
    if all.is_empty() { Err(in_file(path, &"it holds no certificate")) } else { Ok(all) }
}

fn in_file(path: &Path, why: &dyn std::fmt::Display) -> ClientError {
    fault(format!("{} cannot be used: {why}", path.display()))
}

fn fault(why: impl Into<String>) -> ClientError {
    ClientError::Tls(why.into())
}
