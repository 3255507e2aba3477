use super::*;
use rustls::HandshakeKind;
use rustls::sign::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

struct Node {
    identity: Identity,
    pins: PinSet,
    tls: NodeTls,
    _dir: TempDir,
}

fn node(name: &str) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::create(dir.path(), name).unwrap();
    let pins = PinSet::new();
    Node { tls: NodeTls::new(&identity, pins.clone()), identity, pins, _dir: dir }
}

impl Node {
    fn print(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    fn pin(&self, others: &[&Node]) {
        self.pins.replace(others.iter().map(|n| (n.print(), n.pinned())));
    }

    fn pinned(&self) -> PinnedNode {
        PinnedNode { uuid: self.identity.uuid(), name: self.identity.name().to_owned() }
    }
}

/// Three nodes of one cluster.
fn cluster() -> [Node; 3] {
    let nodes = [node("alpha"), node("beta"), node("gamma")];
    for own in &nodes {
        own.pin(&nodes.iter().filter(|n| n.print() != own.print()).collect::<Vec<_>>());
    }
    nodes
}

type Accepted = Result<(server::TlsStream<DuplexStream>, Caller), Refusal>;
type Connected = Result<client::TlsStream<DuplexStream>, Refusal>;

async fn meet(from: &Node, to: &Node, purpose: Purpose, expect: Uuid) -> (Connected, Accepted) {
    let (near, far) = duplex(64 << 10);
    let connect = async {
        if purpose == Purpose::Join {
            from.tls.connect_to_join(near, to.print(), "10.0.0.1:7850").await
        } else {
            from.tls.connect(near, purpose, expect, "10.0.0.1:7850").await
        }
    };
    tokio::join!(connect, to.tls.accept(far, "10.0.0.2:7850"))
}

/// What a server says to a client that the product's own code could not be.
async fn meet_raw(config: ClientConfig, to: &Node) -> Accepted {
    let (near, far) = duplex(64 << 10);
    let connector = TlsConnector::from(Arc::new(config));
    let client = async {
        if let Ok(mut stream) = connector.connect(server_name(), near).await {
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
        }
    };
    let server = async { to.tls.accept(far, "10.0.0.9:7850").await };
    tokio::select! {
        result = server => result,
        () = async { client.await; std::future::pending().await } => unreachable!(),
    }
}

fn raw_config(certified: Arc<CertifiedKey>, alpn: &[&[u8]]) -> ClientConfig {
    let certificate = Arc::new(SingleCertAndKey::from(certified));
    let mut config =
        ClientConfig::clone(&client_config(&certificate, Accept::Anyone, Purpose::Control));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

fn code<T>(result: Result<T, Refusal>) -> Code {
    result.err().expect("it must be refused").code
}

#[tokio::test]
async fn nodes_of_a_cluster_meet() {
    let [alpha, beta, _] = cluster();
    for purpose in [Purpose::Data, Purpose::Control, Purpose::Log, Purpose::Lend] {
        let (near, far) = meet(&alpha, &beta, purpose, beta.identity.uuid()).await;
        let (mut near, (mut far, caller)) = (near.unwrap(), far.unwrap());
        assert_eq!(caller, Caller::Node { node: alpha.pinned(), purpose });
        assert_eq!(peer_fingerprint(near.get_ref().1), Some(beta.print()));
        assert_eq!(peer_fingerprint(far.get_ref().1), Some(alpha.print()));
        assert_eq!(near.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        near.write_all(b"ping").await.unwrap();
        near.flush().await.unwrap();
        let mut bytes = [0; 4];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
    }
}

#[tokio::test]
async fn nodes_meet_over_tcp() {
    let [alpha, beta, _] = cluster();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connect = async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        alpha.tls.connect(stream, Purpose::Data, beta.identity.uuid(), "beta").await.unwrap()
    };
    let accept = async {
        let (stream, from) = listener.accept().await.unwrap();
        beta.tls.accept(stream, &from.to_string()).await.unwrap()
    };
    let (mut near, (mut far, _)) = tokio::join!(connect, accept);
    far.write_all(&[7; 100_000]).await.unwrap();
    far.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    near.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, [7; 100_000]);
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_name_of_what_was_seen() {
    let [alpha, beta, _] = cluster();
    let stranger = node("stranger");
    stranger.pin(&[&alpha]);
    for purpose in [Purpose::Data, Purpose::Control, Purpose::Log, Purpose::Lend] {
        let (near, far) = meet(&stranger, &alpha, purpose, alpha.identity.uuid()).await;
        let refusal = far.err().unwrap();
        assert_eq!(refusal.code, Code::CertificateUnknown);
        assert!(
            refusal.message.starts_with(
                "the certificate of 10.0.0.2:7850 is not that of any node of this cluster"
            ),
            "{refusal}"
        );
        assert!(refusal.message.contains(&stranger.print().to_string()));
        // With TLS 1.3 the other side learns it at its first read.
        let error = near.unwrap().read_u8().await.unwrap_err();
        assert_eq!(explain(&error, "10.0.0.1:7850").code, Code::RefusedByPeer);
    }
    // The other way round: who answers is not of this cluster.
    stranger.pin(&[&alpha, &beta]);
    let (near, far) = meet(&alpha, &stranger, Purpose::Data, beta.identity.uuid()).await;
    let refusal = near.err().unwrap();
    assert_eq!(refusal.code, Code::CertificateUnknown);
    assert!(refusal.message.contains("10.0.0.1:7850"), "{refusal}");
    assert_eq!(code(far), Code::RefusedByPeer);
}

#[tokio::test]
async fn another_node_of_the_cluster_in_the_wrong_place_is_refused() {
    let [alpha, beta, gamma] = cluster();
    let (near, _) = meet(&alpha, &beta, Purpose::Data, gamma.identity.uuid()).await;
    let refusal = near.err().unwrap();
    assert_eq!(refusal.code, Code::WrongNode);
    assert!(refusal.message.contains("beta"), "{refusal}");
}

#[tokio::test]
async fn a_node_that_reaches_itself_is_told() {
    let alpha = node("alpha");
    alpha.pin(&[&alpha]);
    let (near, far) = meet(&alpha, &alpha, Purpose::Control, alpha.identity.uuid()).await;
    assert_eq!((code(near), code(far)), (Code::WrongNode, Code::WrongNode));
    let (near, _) = meet(&alpha, &alpha, Purpose::Join, alpha.identity.uuid()).await;
    assert_eq!(code(near), Code::WrongNode);
}

#[tokio::test]
async fn a_stranger_may_only_ask_to_join() {
    let [alpha, beta, _] = cluster();
    let stranger = node("stranger");
    let (near, far) = meet(&stranger, &alpha, Purpose::Join, alpha.identity.uuid()).await;
    near.unwrap();
    assert_eq!(far.unwrap().1, Caller::Joiner { fingerprint: stranger.print() });
    // A node of the cluster that asks to join is no more than any other that asks.
    let (_, far) = meet(&beta, &alpha, Purpose::Join, alpha.identity.uuid()).await;
    assert_eq!(far.unwrap().1, Caller::Joiner { fingerprint: beta.print() });
}

#[tokio::test]
async fn joining_trusts_only_the_issuer_of_the_token() {
    let [alpha, _, _] = cluster();
    let stranger = node("stranger");
    let (near, far) = duplex(64 << 10);
    let other = Fingerprint([9; 32]);
    let (near, far) = tokio::join!(
        stranger.tls.connect_to_join(near, other, "10.0.0.1:7850"),
        alpha.tls.accept(far, "10.0.0.2:7850")
    );
    let refusal = near.err().unwrap();
    assert_eq!(refusal.code, Code::CertificateUnknown);
    assert!(refusal.message.contains("issued the join token"), "{refusal}");
    assert!(far.is_err());
    // Nor can a join be made by the ordinary door.
    let (near, _) = duplex(1024);
    let refused = stranger.tls.connect(near, Purpose::Join, Uuid::nil(), "x").await;
    assert_eq!(code(refused), Code::ProtocolUnknown);
}

#[tokio::test]
async fn offering_join_beside_another_purpose_opens_nothing() {
    let [alpha, _, _] = cluster();
    let stranger = node("stranger");
    for other in [Purpose::Data, Purpose::Control] {
        for offer in [[Purpose::Join, other], [other, Purpose::Join]] {
            let offer = offer.map(Purpose::alpn);
            let config = raw_config(Arc::clone(stranger.identity.certified()), &offer);
            assert_eq!(code(meet_raw(config, &alpha).await), Code::CertificateUnknown);
        }
    }
}

#[tokio::test]
async fn connections_without_a_known_purpose_are_refused() {
    let [alpha, beta, _] = cluster();
    let stranger = node("stranger");
    let offers: [&[&[u8]]; 4] =
        [&[], &[b"h2"], &[b"holdfast-data/2"], &[b"holdfast-join/1", b"h2"]];
    for offer in offers {
        let config = raw_config(Arc::clone(beta.identity.certified()), offer);
        assert_eq!(code(meet_raw(config, &alpha).await), Code::ProtocolUnknown, "{offer:?}");
        let config = raw_config(Arc::clone(stranger.identity.certified()), offer);
        assert!(meet_raw(config, &alpha).await.is_err(), "{offer:?}");
    }
}

#[tokio::test]
async fn a_pinned_certificate_without_its_key_is_refused() {
    let [alpha, beta, _] = cluster();
    let thief = node("thief");
    let (theirs, own) = (beta.identity.certified(), thief.identity.certified());
    let forged = Arc::new(CertifiedKey::new(theirs.cert.clone(), Arc::clone(&own.key)));
    for purpose in Purpose::ALL {
        let config = raw_config(Arc::clone(&forged), &[purpose.alpn()]);
        assert_eq!(code(meet_raw(config, &alpha).await), Code::CertificateInvalid);
    }
    // A server that shows a pinned certificate whose key it does not have.
    let certificate = Arc::new(SingleCertAndKey::from(forged));
    let mut forger = thief.tls.clone();
    forger.accept_nodes = server_config(&certificate, Accept::Anyone, &[Purpose::Data]);
    let (near, far) = duplex(64 << 10);
    let (near, _) = tokio::join!(
        alpha.tls.connect(near, Purpose::Data, beta.identity.uuid(), "beta"),
        forger.accept(far, "alpha")
    );
    assert_eq!(code(near), Code::CertificateInvalid);
}

#[tokio::test]
async fn no_certificate_is_no_entry() {
    let [alpha, _, _] = cluster();
    for purpose in Purpose::ALL {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier(Accept::Anyone))
            .with_no_client_auth();
        config.alpn_protocols = vec![purpose.alpn().to_vec()];
        assert_eq!(code(meet_raw(config, &alpha).await), Code::CertificateInvalid);
    }
}

#[tokio::test]
async fn older_tls_is_not_spoken() {
    let [alpha, beta, _] = cluster();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(Accept::Anyone))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            beta.identity.certified(),
        ))));
    config.alpn_protocols = vec![Purpose::Data.alpn().to_vec()];
    assert_eq!(code(meet_raw(config, &alpha).await), Code::HandshakeFailed);
}

#[tokio::test]
async fn pins_count_at_every_handshake_and_nothing_is_resumed() {
    let [alpha, beta, _] = cluster();
    for _ in 0..3 {
        let (near, far) = meet(&alpha, &beta, Purpose::Control, beta.identity.uuid()).await;
        let (near, (far, _)) = (near.unwrap(), far.unwrap());
        assert_eq!(near.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(far.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    beta.pin(&[]);
    let (_, far) = meet(&alpha, &beta, Purpose::Control, beta.identity.uuid()).await;
    assert_eq!(code(far), Code::CertificateUnknown);
    beta.pin(&[&alpha]);
    let (_, far) = meet(&alpha, &beta, Purpose::Control, beta.identity.uuid()).await;
    let (stream, _) = far.unwrap();
    // A pin that went between handshake and use counts too.
    beta.pin(&[]);
    let refused = authorize(stream.get_ref().1, &beta.pins, "alpha");
    assert_eq!(code(refused), Code::CertificateUnknown);
}

#[test]
fn before_the_handshake_nobody_is_authorized() {
    let alpha = node("alpha");
    let connection = rustls::ServerConnection::new(Arc::clone(&alpha.tls.accept_nodes)).unwrap();
    assert_eq!(peer_fingerprint(&connection), None);
    assert_eq!(code(authorize(&connection, &alpha.pins, "x")), Code::CertificateInvalid);
}

#[tokio::test]
async fn garbage_and_silence_end() {
    let alpha = node("alpha");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", &[0x16, 3, 1, 0xff, 0xff], &[0; 4096]] {
        let (mut near, far) = duplex(64 << 10);
        near.write_all(garbage).await.unwrap();
        near.shutdown().await.unwrap();
        assert_eq!(code(alpha.tls.accept(far, "x").await), Code::HandshakeFailed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let alpha = node("alpha");
    let (_near, far) = duplex(1024);
    assert_eq!(code(alpha.tls.accept(far, "x").await), Code::HandshakeTimeout);
    let (near, _far) = duplex(1 << 20);
    let refused = alpha.tls.connect(near, Purpose::Data, Uuid::nil(), "x").await;
    assert_eq!(code(refused), Code::HandshakeTimeout);
}

#[test]
fn nothing_secret_is_shown() {
    let alpha = node("alpha");
    alpha.pin(&[&alpha]);
    assert_eq!(format!("{:?}", alpha.tls), "NodeTls { pins: PinSet(1 nodes), .. }");
}
