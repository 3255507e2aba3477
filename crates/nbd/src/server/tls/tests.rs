use super::{AUTHORITY, CERTIFICATE, KEY, REVOKED, ServerTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn sign(&self, serial: u64) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn revoke(&self, serial: u64) -> String {
        let now = rcgen::date_time_ymd(2024, 1, 1);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2094, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// A directory with an authority and a server's certificate.
fn directory(authority: &Authority) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.sign(1);
    write(directory.path(), AUTHORITY, &authority.root.pem());
    write(directory.path(), CERTIFICATE, &certificate.pem());
    write(directory.path(), KEY, &key.serialize_pem());
    directory
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).unwrap();
}

/// Whether a client with this certificate gets its answer.
async fn is_let_in(
    tls: &ServerTls,
    authority: &Authority,
    client: Option<(rcgen::Certificate, KeyPair)>,
) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.root.der().to_vec())).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let server = async {
        let mut stream = tls.acceptor.accept(theirs).await.ok()?;
        stream.write_all(b"x").await.ok()?;
        stream.shutdown().await.ok()
    };
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let client = async {
        let mut stream = connector.connect(name, ours).await.ok()?;
        stream.read_u8().await.ok()
    };
    let (served, read) = tokio::join!(server, client);
    assert_eq!(served.is_some(), read.is_some());
    read.is_some()
}

#[tokio::test]
async fn a_client_needs_a_certificate_where_that_is_asked_for() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = directory(&authority);
    let open = ServerTls::from_directory(directory.path(), false, false).unwrap();
    assert!(!open.required && is_let_in(&open, &authority, None).await);
    assert!(!is_let_in(&open, &stranger, None).await, "the client knows another authority");
    let closed = ServerTls::from_directory(directory.path(), true, true).unwrap();
    assert!(closed.required && !is_let_in(&closed, &authority, None).await);
    assert!(is_let_in(&closed, &authority, Some(authority.sign(2))).await);
    assert!(!is_let_in(&closed, &authority, Some(stranger.sign(2))).await);
    write(directory.path(), REVOKED, &authority.revoke(3));
    let closed = ServerTls::from_directory(directory.path(), true, true).unwrap();
    assert!(is_let_in(&closed, &authority, Some(authority.sign(2))).await);
    assert!(!is_let_in(&closed, &authority, Some(authority.sign(3))).await, "revoked");
}

#[test]
fn what_is_wrong_with_the_files_is_said_of_the_file() {
    let authority = Authority::new();
    let fails = |name: &str, text: Option<&str>| {
        let directory = directory(&authority);
        match text {
            Some(text) => write(directory.path(), name, text),
            None => std::fs::remove_file(directory.path().join(name)).unwrap(),
        }
        let Err(error) = ServerTls::from_directory(directory.path(), false, true) else {
            panic!("{name} with {text:?} was taken");
        };
        assert_eq!(error.path, directory.path().join(name));
        error.why
    };
    for name in [AUTHORITY, CERTIFICATE, KEY] {
        assert_eq!(fails(name, None), "it does not exist");
        assert!(fails(name, Some("")).contains("nothing in it"));
        assert!(!fails(name, Some("-----BEGIN CERTIFICATE-----\n%%%\n")).is_empty());
    }
    assert!(!fails(REVOKED, Some("")).is_empty());
    let (_, other) = authority.sign(1);
    let directory = directory(&authority);
    write(directory.path(), KEY, &other.serialize_pem());
    let error = ServerTls::from_directory(directory.path(), false, false).err().unwrap();
    assert!(error.to_string().contains("does not go with server-key.pem"), "{error}");
}
