//! TLS with the files that other NBD programs use, too.

use super::ServerTls;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const AUTHORITY: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";

/// Why TLS cannot be offered with the files of a directory.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be used: {why}", .path.display())]
pub struct TlsFileError {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl ServerTls {
    /// TLS 1.2 and 1.3 with the files of a directory, in PEM: `server-cert.pem` (with the
    /// certificates between it and the authority's), `server-key.pem`, and, where clients must
    /// have a certificate, `ca-cert.pem` and perhaps `ca-crl.pem`. The files are read once.
    ///
    /// * `required`: nothing is told in the clear.
    /// * `verify_clients`: clients must have a certificate that the authority has signed and has
    ///   not revoked.
    ///
    /// # Errors
    /// [`TlsFileError`] when a file is missing or is not what its name says.
    pub fn from_directory(
        directory: &Path,
        required: bool,
        verify_clients: bool,
    ) -> Result<Self, TlsFileError> {
        let file = |name: &str| directory.join(name);
        let certificates: Vec<CertificateDer<'static>> = read_all(&file(CERTIFICATE))?;
        let key = PrivateKeyDer::from_pem_file(file(KEY))
            .map_err(|why| unusable(&file(KEY), &explain(&why)))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|why| unusable(directory, &why.to_string()))?;
        let builder = if verify_clients {
            builder.with_client_cert_verifier(verifier(directory)?)
        } else {
            builder.with_no_client_auth()
        };
        let config = builder.with_single_cert(certificates, key).map_err(|why| {
            unusable(&file(CERTIFICATE), &format!("it does not go with {KEY}: {why}"))
        })?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), required })
    }
}

/// Accepts certificates of clients that the authority in `directory` has signed.
fn verifier(directory: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsFileError> {
    let path = directory.join(AUTHORITY);
    let mut roots = RootCertStore::empty();
    for certificate in read_all(&path)? {
        roots.add(certificate).map_err(|why| unusable(&path, &why.to_string()))?;
    }
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    let path = directory.join(REVOKED);
    if path.exists() {
        let lists: Vec<CertificateRevocationListDer<'static>> = read_all(&path)?;
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    builder.build().map_err(|why| unusable(&path, &why.to_string()))
}

/// All items of one kind in a PEM file; at least one.
fn read_all<T: PemObject>(path: &Path) -> Result<Vec<T>, TlsFileError> {
    let items = T::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<T>, _>>);
    match items {
        Ok(items) if items.is_empty() => Err(unusable(path, NOTHING)),
        Ok(items) => Ok(items),
        Err(why) => Err(unusable(path, &explain(&why))),
    }
}

const NOTHING: &str = "there is nothing in it that it should hold";

fn explain(why: &PemError) -> String {
    match why {
        PemError::Io(why) if why.kind() == io::ErrorKind::NotFound => "it does not exist".into(),
        PemError::Io(why) if why.kind() == io::ErrorKind::PermissionDenied => {
            "permission is denied".into()
        }
        PemError::Io(why) => why.to_string(),
        PemError::NoItemsFound => NOTHING.into(),
        _ => "it is not PEM".into(),
    }
}

fn unusable(path: &Path, why: &str) -> TlsFileError {
    TlsFileError { path: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests;
