//! Servers with certificates that must not be believed.

use crate::server::{Place, Platter, Server, able, options};
use holdfast_nbd::{Client, ConnectOptions, RemoteDisk, ServerTls};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::path::Path;

type Authority = Issuer<'static, KeyPair>;

/// An authority, and its certificate.
fn authority() -> (Authority, String) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), certificate)
}

/// What is wrong with a server's certificate.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    OtherAuthority,
    OtherHost,
    SelfSigned,
    Expired,
    NotYet,
    ForClients,
}

/// Makes the files of a server, and `ca-cert.pem` for its client.
fn make(server: &Path, client: &Path, fault: Fault) {
    let (mut issuer, root) = authority();
    std::fs::write(client.join("ca-cert.pem"), root).unwrap();
    if fault == Fault::OtherAuthority {
        issuer = authority().0;
    }
    let host = if fault == Fault::OtherHost { "127.0.0.2" } else { "127.0.0.1" };
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let (past, future) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(4000, 1, 1));
    match fault {
        Fault::Expired => (params.not_before, params.not_after) = (past, past + SECOND),
        Fault::NotYet => (params.not_before, params.not_after) = (future - SECOND, future),
        Fault::ForClients => {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        }
        _ => {}
    }
    let key = KeyPair::generate().unwrap();
    let certificate = match fault {
        Fault::SelfSigned => params.self_signed(&key).unwrap(),
        _ => params.signed_by(&key, &issuer).unwrap(),
    };
    std::fs::write(server.join("server-cert.pem"), certificate.pem()).unwrap();
    std::fs::write(server.join("server-key.pem"), key.serialize_pem()).unwrap();
}

const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

#[test]
fn only_a_server_with_the_right_certificate_is_believed() {
    for (fault, why) in [
        (Fault::None, ""),
        // They have the name of the right one.
        (Fault::OtherAuthority, "BadSignature"),
        (Fault::OtherHost, "not valid for name"),
        (Fault::SelfSigned, "BadSignature"),
        (Fault::Expired, "expired"),
        (Fault::NotYet, "not valid yet"),
        (Fault::ForClients, "does not allow extended key usage"),
    ] {
        let (server_dir, client_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(server_dir.path(), client_dir.path(), fault);
        let platter = Platter::new(1 << 20);
        let tls = ServerTls::from_directory(server_dir.path(), true, false).unwrap();
        let server = Server::start_with(&platter, &Place::Tcp(0), able(&platter), Some(tls));
        let mut uri = server.uri.clone();
        uri.tls = true;
        let place = Some(client_dir.path().to_owned());

        let mut remote = options(&[&uri], 2);
        remote.tls_certificates.clone_from(&place);
        let opened = RemoteDisk::open(remote);
        let plain = ConnectOptions { tls_certificates: place, ..ConnectOptions::default() };
        let connected = Client::connect(&uri, &plain);
        if fault == Fault::None {
            opened.unwrap().read_at(&mut [0; 4096], 0).unwrap();
            connected.unwrap().read_at(&mut [0; 4096], 0).unwrap();
            continue;
        }
        for error in [opened.unwrap_err().to_string(), connected.unwrap_err().to_string()] {
            assert!(error.contains(why), "{fault:?}: {error}");
        }
    }
}

#[test]
fn without_an_authority_no_server_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), dir.path(), Fault::None);
    let platter = Platter::new(1 << 20);
    let tls = ServerTls::from_directory(dir.path(), true, false).unwrap();
    let server = Server::start_with(&platter, &Place::Tcp(0), able(&platter), Some(tls));
    let mut uri = server.uri.clone();
    uri.tls = true;
    let refusal = |parameters: &[(&str, &str)]| {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut uri = uri.clone();
        uri.tls_parameters = parameters.iter().map(own).collect();
        RemoteDisk::open(options(&[&uri], 1)).unwrap_err().to_string()
    };
    assert!(refusal(&[]).contains("directory with certificates"));
    assert!(refusal(&[("tls-certificates", "/nowhere")]).contains("/nowhere/ca-cert.pem"));
    let place = dir.path().to_str().unwrap();
    // A URI cannot switch the check off.
    let off = refusal(&[("tls-certificates", place), ("tls-verify-peer", "false")]);
    assert!(off.contains("always verified"), "{off}");
    let psk = refusal(&[("tls-psk-file", "/x"), ("tls-certificates", place)]);
    assert!(psk.contains("not supported"), "{psk}");
    std::fs::write(dir.path().join("ca-cert.pem"), "").unwrap();
    assert!(refusal(&[("tls-certificates", place)]).contains("holds no certificate"));
}
