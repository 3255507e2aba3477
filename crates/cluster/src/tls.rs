use crate::{Code, Fingerprint, Identity, Refusal};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, DigitallySignedStruct,
    DistinguishedName, OtherError, ServerConfig, SignatureScheme,
};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};
use uuid::Uuid;

#[cfg(test)]
mod tests;

/// How long the connects of [`NodeTls`] may take in all.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long [`NodeTls::accept`] may take in all: strangers hold a place meanwhile.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection between nodes is for. The TLS handshake (ALPN) says it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// A resource's data link.
    Data,
    /// HTTP/1.1 calls between nodes of the cluster.
    Control,
    /// A resource's journal, for a node that follows it.
    Log,
    /// The same from another node that follows, while none that leads is in reach.
    Lend,
    /// HTTP/1.1 calls of a node that wants to join and is not known yet.
    Join,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 5] = [Self::Data, Self::Control, Self::Log, Self::Lend, Self::Join];

    /// The protocol's name in the handshake, with its version.
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Data => b"holdfast-data/1",
            Self::Control => b"holdfast-ctl/1",
            Self::Log => b"holdfast-log/1",
            Self::Lend => b"holdfast-lend/1",
            Self::Join => b"holdfast-join/1",
        }
    }

    fn of_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.alpn() == name)
    }
}

/// A node whose certificate is pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedNode {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
}

/// The certificates that are let in, shared by everyone who makes or takes connections. It
/// changes while they run: each handshake, and each [`authorize`], looks at it as it is then.
/// A connection that stands is not cut when its pin goes: the daemon closes those of a node that
/// [`PinSet::node_of`] does not know any more.
#[derive(Clone, Default)]
pub struct PinSet(Arc<RwLock<HashMap<Fingerprint, PinnedNode>>>);

impl PinSet {
    /// An empty set: nobody is let in.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The node with this certificate; `None` when no node of the cluster has it.
    #[must_use]
    pub fn node_of(&self, fingerprint: &Fingerprint) -> Option<PinnedNode> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(fingerprint).cloned()
    }

    /// Puts these nodes in the place of all that were there.
    pub fn replace(&self, nodes: impl IntoIterator<Item = (Fingerprint, PinnedNode)>) {
        let nodes = nodes.into_iter().collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    /// How many nodes are pinned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nobody is let in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for PinSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinSet({} nodes)", self.len())
    }
}

/// Who is at the other end of an accepted connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A node of this cluster, for its data or control calls.
    Node {
        /// Which node.
        node: PinnedNode,
        /// What for: [`Purpose::Data`], [`Purpose::Control`],
        /// [`Purpose::Log`] or [`Purpose::Lend`].
        purpose: Purpose,
    },
    /// Somebody who proved only that they have the key of this certificate. The one thing that
    /// may be done for them is [`crate::ClusterState::admit`].
    Joiner {
        /// The fingerprint of their certificate.
        fingerprint: Fingerprint,
    },
}

/// The fingerprint of the certificate that the other end proved to have the key of; `None`
/// before the handshake has finished, or when it showed none.
#[must_use]
pub fn peer_fingerprint(connection: &CommonState) -> Option<Fingerprint> {
    connection.peer_certificates()?.first().map(Fingerprint::of)
}

/// Decides who is at the other end of a connection whose handshake has finished, by the pins as
/// they are now. Nothing may be read from a connection before it. [`NodeTls::accept`] calls it;
/// only who makes handshakes by other means needs it. `from` is the peer's address for messages.
///
/// # Errors
/// [`Code::CertificateUnknown`], [`Code::CertificateInvalid`], [`Code::ProtocolUnknown`].
pub fn authorize(conn: &CommonState, pins: &PinSet, from: &str) -> Result<Caller, Refusal> {
    let Some(fingerprint) = peer_fingerprint(conn) else {
        return Err(no_certificate(from));
    };
    match conn.alpn_protocol().and_then(Purpose::of_alpn) {
        None => Err(no_protocol(from)),
        Some(Purpose::Join) => Ok(Caller::Joiner { fingerprint }),
        Some(purpose) => match pins.node_of(&fingerprint) {
            Some(node) => Ok(Caller::Node { node, purpose }),
            None => Err(unknown(from, &fingerprint)),
        },
    }
}

/// Makes and takes the TLS connections of one node. TLS 1.3 only, a certificate on both sides,
/// no resumption and no early data: every connection goes through a whole handshake and the pins.
#[derive(Clone)]
pub struct NodeTls {
    pins: PinSet,
    own: Fingerprint,
    accept_nodes: Arc<ServerConfig>,
    accept_joiners: Arc<ServerConfig>,
    certificate: Arc<SingleCertAndKey>,
    data: Arc<ClientConfig>,
    control: Arc<ClientConfig>,
    log: Arc<ClientConfig>,
    lend: Arc<ClientConfig>,
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl NodeTls {
    /// For the node with this identity, in the cluster of these pins.
    #[must_use]
    pub fn new(identity: &Identity, pins: PinSet) -> Self {
        let certificate = Arc::new(SingleCertAndKey::from(Arc::clone(identity.certified())));
        let nodes = Accept::Nodes(pins.clone());
        let client = |purpose| client_config(&certificate, nodes.clone(), purpose);
        Self {
            own: identity.fingerprint(),
            accept_nodes: server_config(
                &certificate,
                nodes.clone(),
                &[Purpose::Data, Purpose::Control, Purpose::Log, Purpose::Lend],
            ),
            accept_joiners: server_config(&certificate, Accept::Anyone, &[Purpose::Join]),
            data: client(Purpose::Data),
            control: client(Purpose::Control),
            log: client(Purpose::Log),
            lend: client(Purpose::Lend),
            certificate,
            pins,
        }
    }

    /// Takes a connection: handshake and [`authorize`]. `from` is the peer's address for
    /// messages. An unknown certificate gets through the handshake only when the peer asks for
    /// nothing but [`Purpose::Join`].
    ///
    /// # Errors
    /// As [`authorize`], and [`Code::HandshakeFailed`], [`Code::HandshakeTimeout`],
    /// [`Code::RefusedByPeer`], [`Code::WrongNode`] when this node has reached itself.
    pub async fn accept<S>(
        &self,
        stream: S,
        from: &str,
    ) -> Result<(server::TlsStream<S>, Caller), Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = in_time(ACCEPT_TIMEOUT, from, async {
            let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
            let start = acceptor.await?;
            let joins = start
                .client_hello()
                .alpn()
                .is_some_and(|mut names| names.all(|name| name == Purpose::Join.alpn()));
            let config = if joins { &self.accept_joiners } else { &self.accept_nodes };
            start.into_stream(Arc::clone(config)).await
        })
        .await?;
        let (_, connection) = stream.get_ref();
        if peer_fingerprint(connection) == Some(self.own) {
            return Err(myself(from));
        }
        let caller = authorize(connection, &self.pins, from)?;
        Ok((stream, caller))
    }

    /// Makes a connection to exactly this node of the cluster, for [`Purpose::Data`],
    /// [`Purpose::Control`], [`Purpose::Log`] or [`Purpose::Lend`]. `to` is its address for messages.
    /// That this side is refused by the other shows at the first read: [`explain`] makes a sentence
    /// of it.
    ///
    /// # Errors
    /// [`Code::CertificateUnknown`] when no node of the cluster answers, [`Code::WrongNode`] when
    /// another one does; else as [`NodeTls::accept`].
    pub async fn connect<S>(
        &self,
        stream: S,
        purpose: Purpose,
        node: Uuid,
        to: &str,
    ) -> Result<client::TlsStream<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = match purpose {
            Purpose::Data => &self.data,
            Purpose::Control => &self.control,
            Purpose::Log => &self.log,
            Purpose::Lend => &self.lend,
            Purpose::Join => return Err(no_protocol(to)),
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let stream =
            in_time(HANDSHAKE_TIMEOUT, to, connector.connect(server_name(), stream)).await?;
        let connection = stream.get_ref().1;
        if peer_fingerprint(connection) == Some(self.own) {
            return Err(myself(to));
        }
        match authorize(connection, &self.pins, to)? {
            Caller::Node { node: found, .. } if found.uuid == node => Ok(stream),
            Caller::Node { node: found, .. } => Err(wrong_node(to, &found.name)),
            Caller::Joiner { .. } => Err(no_protocol(to)),
        }
    }

    /// Makes a connection to the node that issued a join token: the one with this certificate.
    ///
    /// # Errors
    /// [`Code::CertificateUnknown`] when another certificate is shown; else as
    /// [`NodeTls::accept`].
    pub async fn connect_to_join<S>(
        &self,
        stream: S,
        issuer: Fingerprint,
        to: &str,
    ) -> Result<client::TlsStream<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if issuer == self.own {
            return Err(myself(to));
        }
        let config = client_config(&self.certificate, Accept::Only(issuer), Purpose::Join);
        let connect = TlsConnector::from(config).connect(server_name(), stream);
        let stream =
            in_time(HANDSHAKE_TIMEOUT, to, connect).await.map_err(|refusal| {
                match refusal.code {
                    Code::CertificateUnknown => not_the_issuer(to),
                    _ => refusal,
                }
            })?;
        match authorize(stream.get_ref().1, &self.pins, to)? {
            Caller::Joiner { fingerprint } if fingerprint == issuer => Ok(stream),
            _ => Err(not_the_issuer(to)),
        }
    }
}

/// Makes a refusal of an error of a TLS connection, from the handshake or from a later read:
/// with TLS 1.3 the side that connects learns only then that it was refused. `peer` is the
/// address for the message.
#[must_use]
pub fn explain(error: &io::Error, peer: &str) -> Refusal {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => {
            match why.downcast_ref::<NotPinned>() {
                Some(NotPinned(fingerprint)) => unknown(peer, fingerprint),
                None => failed(peer, error),
            }
        }
        Some(rustls::Error::InvalidCertificate(why)) => Refusal::new(
            Code::CertificateInvalid,
            format!("the certificate of {peer} is not valid: {why:?}"),
            "",
        ),
        Some(rustls::Error::NoCertificatesPresented) => no_certificate(peer),
        Some(rustls::Error::NoApplicationProtocol) => no_protocol(peer),
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            no_protocol(peer)
        }
        Some(rustls::Error::AlertReceived(
            AlertDescription::CertificateUnknown | AlertDescription::CertificateRequired,
        )) => Refusal::new(
            Code::RefusedByPeer,
            format!("{peer} refused this node: its cluster does not know this node's certificate"),
            "see `holdfast cluster status` on both nodes; a node that was removed must join again",
        ),
        _ => failed(peer, error),
    }
}

async fn in_time<T>(
    limit: Duration,
    peer: &str,
    handshake: impl Future<Output = io::Result<T>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(limit, handshake).await {
        Ok(result) => result.map_err(|error| explain(&error, peer)),
        Err(_) => Err(Refusal::new(
            Code::HandshakeTimeout,
            format!(
                "the TLS handshake with {peer} was given up: it took more than {} s",
                limit.as_secs()
            ),
            "",
        )),
    }
}

fn failed(peer: &str, error: &io::Error) -> Refusal {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side closed it".to_owned(),
        _ => error.to_string(),
    };
    Refusal::new(
        Code::HandshakeFailed,
        format!("the TLS connection with {peer} failed: {why}"),
        "check that a Holdfast daemon listens there",
    )
}

fn unknown(peer: &str, fingerprint: &Fingerprint) -> Refusal {
    Refusal::new(
        Code::CertificateUnknown,
        format!(
            "the certificate of {peer} is not that of any node of this cluster \
             (its fingerprint is {fingerprint})"
        ),
        "a node becomes known by `holdfast cluster token` here and `holdfast cluster join` there",
    )
}

fn not_the_issuer(peer: &str) -> Refusal {
    Refusal::new(
        Code::CertificateUnknown,
        format!("the certificate of {peer} is not that of the node that issued the join token"),
        "make a new token on the node that you want to reach, with its address in --addr",
    )
}

fn no_certificate(peer: &str) -> Refusal {
    Refusal::new(Code::CertificateInvalid, format!("{peer} showed no certificate"), "")
}

fn no_protocol(peer: &str) -> Refusal {
    Refusal::new(
        Code::ProtocolUnknown,
        format!("the connection with {peer} is for nothing that both sides know (ALPN)"),
        "check that both nodes run versions of Holdfast that work together",
    )
}

fn myself(peer: &str) -> Refusal {
    Refusal::new(
        Code::WrongNode,
        format!("the node at {peer} is this node itself"),
        "check the addresses of the other nodes with `holdfast cluster status`",
    )
}

fn wrong_node(peer: &str, found: &str) -> Refusal {
    Refusal::new(
        Code::WrongNode,
        format!("the node at {peer} is not the one that was expected, but {found}"),
        "check the addresses of the nodes with `holdfast cluster status`",
    )
}

/// The verifier's reason, carried through rustls to [`explain`].
#[derive(Debug)]
struct NotPinned(Fingerprint);

impl fmt::Display for NotPinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate with the fingerprint {} is not pinned", self.0)
    }
}

impl std::error::Error for NotPinned {}

/// Which certificates a handshake lets through. Whatever it is, the peer must prove that it has
/// the certificate's key.
#[derive(Clone, Debug)]
enum Accept {
    Nodes(PinSet),
    Only(Fingerprint),
    Anyone,
}

/// Names, dates and issuers in certificates mean nothing here; the fingerprint is all.
#[derive(Debug)]
struct Verifier {
    accept: Accept,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let fingerprint = Fingerprint::of(certificate);
        let known = match &self.accept {
            Accept::Nodes(pins) => pins.node_of(&fingerprint).is_some(),
            Accept::Only(one) => fingerprint == *one,
            Accept::Anyone => true,
        };
        if known {
            return Ok(());
        }
        let why = OtherError(Arc::new(NotPinned(fingerprint)));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn not_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken between nodes".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn verifier(accept: Accept) -> Arc<Verifier> {
    Arc::new(Verifier { accept, provider: provider() })
}

fn server_config(
    certificate: &Arc<SingleCertAndKey>,
    accept: Accept,
    purposes: &[Purpose],
) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(verifier(accept))
        .with_cert_resolver(Arc::<SingleCertAndKey>::clone(certificate));
    config.alpn_protocols = purposes.iter().map(|p| p.alpn().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

fn client_config(
    certificate: &Arc<SingleCertAndKey>,
    accept: Accept,
    purpose: Purpose,
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier(accept))
        .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(certificate));
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// rustls wants a name to look for; the verifier does not look at it and it is not sent.
fn server_name() -> ServerName<'static> {
    ServerName::try_from("holdfast").expect("it is a DNS name")
}
