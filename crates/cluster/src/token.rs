use crate::address::{Address, MAX_ADDRESSES};
use crate::identity::read_hex;
use crate::{Code, Fingerprint, Refusal, UnixMillis};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use subtle::ConstantTimeEq;
use uuid::Uuid;

#[cfg(test)]
mod tests;

/// How many tokens can wait to be used.
pub const MAX_LIVE_TOKENS: usize = 64;
/// The longest life of a token, in seconds.
pub const MAX_TTL_SECONDS: u64 = 7 * 86_400;

/// How long a token that is over is remembered, so that who comes late hears why.
const REMEMBER_SECONDS: u64 = 86_400;
/// Tokens of any state that are remembered at most.
const MAX_REMEMBERED: usize = 4 * MAX_LIVE_TOKENS;

const PREFIX: &str = "hf1-";
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;
/// More than a token with the most and longest addresses has.
const MAX_TEXT: usize = 8192;

/// The number of a token: not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for TokenId {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        let mut id = [0; 8];
        if read_hex(&text, &mut id) { Ok(Self(id)) } else { Err(garbled("its number is none")) }
    }
}

/// What proves that a node was given a token. Never printed; it travels only inside a token and
/// to the node whose certificate the token names.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    fn random() -> Result<Self, Refusal> {
        random().map(Self)
    }

    fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        URL_SAFE_NO_PAD.encode(secret.0)
    }
}

impl TryFrom<String> for Secret {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| garbled("its secret is none"))?;
        bytes.try_into().map(Self).map_err(|_| garbled("its secret has another length"))
    }
}

/// The secret has 256 random bits, so a plain hash of it gives nothing away.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct SecretHash([u8; 32]);

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> Self {
        Fingerprint(hash.0).into()
    }
}

impl TryFrom<String> for SecretHash {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        Fingerprint::try_from(text).map(|print| Self(print.0))
    }
}

/// All that a node needs to join a cluster: where to call, whom to trust there and what to say.
/// As text it is one word, `hf1-...`; whoever has the word can join once until it expires.
#[derive(Clone, Debug)]
pub struct JoinToken {
    /// The cluster's UUID.
    pub cluster: Uuid,
    /// The token's number.
    pub id: TokenId,
    /// What the joining node shows.
    pub secret: Secret,
    /// The certificate of the node that issued it; no other node can redeem it.
    pub issuer: Fingerprint,
    /// Where that node can be reached, in order of preference; never empty.
    pub addresses: Vec<Address>,
    /// When it expires, in seconds since 1970-01-01 UTC by the issuer's clock.
    pub expires: u64,
}

impl JoinToken {
    /// The token as the word that is handed to the joining node. It is a secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(self.cluster.as_bytes());
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.issuer.0);
        bytes.extend_from_slice(&self.expires.to_be_bytes());
        for address in self.addresses.iter().take(MAX_ADDRESSES) {
            let text = address.to_string();
            let len = u16::try_from(text.len()).expect("a host name has at most 253 characters");
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads what [`JoinToken::reveal`] wrote; blanks around it do not matter. Whether it has
    /// expired is for its issuer to say, whose clock counts.
    ///
    /// # Errors
    /// [`Code::TokenGarbled`] when it is not a whole token of this version.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(garbled("it is too long"));
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(garbled("it does not begin with \"hf1-\""));
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| garbled("it was cut off, or characters in it were changed"))?;
        let Some((body, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return Err(garbled("it is too short"));
        };
        if checksum(body) != *sum {
            return Err(garbled("it was cut off, or characters in it were changed"));
        }
        read_body(body)
    }
}

fn read_body(mut body: &[u8]) -> Result<JoinToken, Refusal> {
    let [version] = take::<1>(&mut body)?;
    if version != VERSION {
        return Err(garbled("another version of Holdfast made it"));
    }
    let cluster = Uuid::from_bytes(take(&mut body)?);
    let id = TokenId(take(&mut body)?);
    let secret = Secret(take(&mut body)?);
    let issuer = Fingerprint(take(&mut body)?);
    let expires = u64::from_be_bytes(take(&mut body)?);
    let mut addresses = Vec::new();
    while !body.is_empty() {
        let len = usize::from(u16::from_be_bytes(take(&mut body)?));
        let (text, rest) = body.split_at_checked(len).ok_or_else(|| garbled("it is too short"))?;
        let text = str::from_utf8(text).map_err(|_| garbled("an address in it is none"))?;
        addresses.push(Address::parse(text, None)?);
        body = rest;
    }
    if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
        return Err(garbled("it has no address, or too many"));
    }
    Ok(JoinToken { cluster, id, secret, issuer, addresses, expires })
}

fn take<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], Refusal> {
    let (first, rest) = body.split_first_chunk().ok_or_else(|| garbled("it is too short"))?;
    *body = rest;
    Ok(*first)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = Sha256::digest(bytes);
    std::array::from_fn(|at| hash[at])
}

fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Refusal::new(Code::NoRandom, format!("the system gives no random numbers: {error}"), "")
    })?;
    Ok(bytes)
}

fn garbled(why: &str) -> Refusal {
    Refusal::new(
        Code::TokenGarbled,
        format!("the text is not a join token: {why}"),
        "copy the whole word that `holdfast cluster token` printed",
    )
}

/// What the issuing node keeps of the tokens it issued.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tokens(BTreeMap<TokenId, Issued>);

#[derive(Clone, Serialize, Deserialize)]
struct Issued {
    hash: SecretHash,
    expires: u64,
    #[serde(default)]
    used_by: Option<Fingerprint>,
}

impl Issued {
    fn is_live(&self, now: UnixMillis) -> bool {
        self.used_by.is_none() && now.seconds() < self.expires
    }
}

impl Tokens {
    /// A new token's number, secret and expiry.
    pub(crate) fn issue(
        &mut self,
        ttl_seconds: u64,
        now: UnixMillis,
    ) -> Result<(TokenId, Secret, u64), Refusal> {
        if !(1..=MAX_TTL_SECONDS).contains(&ttl_seconds) {
            return Err(Refusal::new(
                Code::BadTtl,
                format!(
                    "a token cannot live for {ttl_seconds} s: it must be 1 s to {} days",
                    MAX_TTL_SECONDS / 86_400
                ),
                "choose another --ttl, for example 1h",
            ));
        }
        self.forget_old(now);
        if self.0.values().filter(|token| token.is_live(now)).count() >= MAX_LIVE_TOKENS {
            return Err(Refusal::new(
                Code::TooManyTokens,
                format!("no token was made: {MAX_LIVE_TOKENS} are waiting to be used already"),
                "use one of them, or wait until they expire",
            ));
        }
        let (id, secret) = (TokenId(random()?), Secret::random()?);
        let expires = now.seconds().saturating_add(ttl_seconds);
        self.0.insert(id, Issued { hash: secret.hash(), expires, used_by: None });
        Ok((id, secret, expires))
    }

    /// Whether the secret is the token's and it was used up by this certificate.
    pub(crate) fn was_used_by(&self, id: TokenId, secret: &Secret, by: &Fingerprint) -> bool {
        self.get(id, secret).is_ok_and(|token| token.used_by.as_ref() == Some(by))
    }

    /// Uses a token up. The caller makes it durable before anybody hears of it.
    pub(crate) fn redeem(
        &mut self,
        id: TokenId,
        secret: &Secret,
        by: Fingerprint,
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        let hint = "make a new one with `holdfast cluster token` on a node of the cluster";
        // Who does not have the secret learns nothing about the token's state.
        let token = self.get(id, secret)?;
        if token.used_by.is_some() {
            return Err(Refusal::new(
                Code::TokenUsed,
                format!("the join token {id} is not accepted: it was used already"),
                hint,
            ));
        }
        if !token.is_live(now) {
            let ago = now.seconds() - token.expires;
            return Err(Refusal::new(
                Code::TokenExpired,
                format!("the join token {id} is not accepted: it expired {ago} s ago"),
                hint,
            ));
        }
        if let Some(token) = self.0.get_mut(&id) {
            token.used_by = Some(by);
        }
        self.forget_old(now);
        Ok(())
    }

    fn get(&self, id: TokenId, secret: &Secret) -> Result<&Issued, Refusal> {
        let Some(token) = self.0.get(&id) else {
            return Err(Refusal::new(
                Code::TokenUnknown,
                format!("the join token {id} is not accepted: this node did not issue it"),
                "a token works only at the node that made it; make a new one there",
            ));
        };
        if bool::from(token.hash.0.ct_eq(&secret.hash().0)) {
            return Ok(token);
        }
        Err(Refusal::new(
            Code::TokenWrongSecret,
            format!("the join token {id} is not accepted: its secret is wrong"),
            "copy the whole word that `holdfast cluster token` printed",
        ))
    }

    fn forget_old(&mut self, now: UnixMillis) {
        self.0.retain(|_, t| now.seconds() < t.expires.saturating_add(REMEMBER_SECONDS));
        while self.0.len() >= MAX_REMEMBERED {
            let over = self.0.iter().filter(|(_, token)| !token.is_live(now));
            let Some(id) = over.min_by_key(|(_, token)| token.expires).map(|(id, _)| *id) else {
                return;
            };
            self.0.remove(&id);
        }
    }
}
