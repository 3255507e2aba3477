use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const WHO: Fingerprint = Fingerprint([1; 32]);

fn later(seconds: u64) -> UnixMillis {
    UnixMillis(NOW.0 + seconds * 1000)
}

fn token(addresses: &[&str]) -> JoinToken {
    JoinToken {
        cluster: Uuid::from_u128(7),
        id: TokenId([3; 8]),
        secret: Secret([0xab; 32]),
        issuer: Fingerprint([5; 32]),
        addresses: addresses.iter().map(|a| Address::parse(a, None).unwrap()).collect(),
        expires: 1_700_000_000,
    }
}

#[test]
fn a_token_is_one_word_and_reads_back() {
    let token = token(&["alpha.example:7850", "[2001:db8::1]:7850"]);
    let word = token.reveal();
    assert!(word.starts_with("hf1-"));
    assert!(word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{word}");
    let read = JoinToken::parse(&format!("  {word}\n")).unwrap();
    assert_eq!((read.cluster, read.id, read.issuer), (token.cluster, token.id, token.issuer));
    assert_eq!((read.secret.0, read.expires), (token.secret.0, token.expires));
    assert_eq!(read.addresses, token.addresses);
}

#[test]
fn the_longest_token_reads_back() {
    let host = format!("{0}.{0}.{0}.{1}:65535", "a".repeat(63), "b".repeat(61));
    let token = token(&[host.as_str(); MAX_ADDRESSES]);
    assert_eq!(JoinToken::parse(&token.reveal()).unwrap().addresses.len(), MAX_ADDRESSES);
}

#[test]
fn garbled_tokens_are_refused() {
    let word = token(&["alpha:7850"]).reveal();
    for cut in 0..word.len() {
        assert_eq!(JoinToken::parse(&word[..cut]).unwrap_err().code, Code::TokenGarbled, "{cut}");
    }
    for at in 4..word.len() {
        let mut changed = word.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(JoinToken::parse(&changed).unwrap_err().code, Code::TokenGarbled, "{at}");
    }
    for text in ["", "hf1-", "hf2-abcd", "hello", "hf1-äöü", &format!("hf1-{}", "A".repeat(9000))]
    {
        assert_eq!(JoinToken::parse(text).unwrap_err().code, Code::TokenGarbled, "{text}");
    }
}

#[test]
fn whole_but_wrong_bodies_are_refused() {
    let good = URL_SAFE_NO_PAD.decode(&token(&["alpha:7850"]).reveal()[4..]).unwrap();
    let good = &good[..good.len() - CHECKSUM];
    let fixed = 1 + 16 + 8 + 32 + 32 + 8;
    let other_version = [&[9], &good[1..]].concat();
    let no_address = good[..fixed].to_vec();
    let long_address = [&good[..fixed], &[0xff, 0xff], &good[fixed + 2..]].concat();
    let many: Vec<u8> = [&good[..fixed], &good[fixed..].repeat(MAX_ADDRESSES + 1)].concat();
    for body in [other_version, no_address, long_address, many] {
        let word = URL_SAFE_NO_PAD.encode([&body[..], &checksum(&body)].concat());
        assert_eq!(JoinToken::parse(&format!("hf1-{word}")).unwrap_err().code, Code::TokenGarbled);
    }
}

#[test]
fn secrets_are_not_shown() {
    let token = token(&["alpha:7850"]);
    let shown = format!("{token:?} {:?}", token.secret);
    assert!(!shown.contains("171") && !shown.to_lowercase().contains("abab"), "{shown}");
    let mut tokens = Tokens::default();
    let (_, secret, _) = tokens.issue(60, NOW).unwrap();
    let kept = serde_json::to_string(&tokens).unwrap();
    assert!(!kept.contains(&String::from(secret.clone())));
    assert!(!kept.contains(&Fingerprint(secret.0).to_string()));
}

#[test]
fn a_token_works_once() {
    let mut tokens = Tokens::default();
    let (id, secret, expires) = tokens.issue(60, NOW).unwrap();
    assert_eq!(expires, NOW.seconds() + 60);
    assert!(!tokens.was_used_by(id, &secret, &WHO));
    tokens.redeem(id, &secret, WHO, later(59)).unwrap();
    assert!(tokens.was_used_by(id, &secret, &WHO));
    assert!(!tokens.was_used_by(id, &secret, &Fingerprint([2; 32])));
    assert!(!tokens.was_used_by(id, &Secret([0; 32]), &WHO));
    assert_eq!(tokens.redeem(id, &secret, WHO, later(59)).unwrap_err().code, Code::TokenUsed);
}

#[test]
fn refusals_have_their_own_codes() {
    let mut tokens = Tokens::default();
    let (id, secret, _) = tokens.issue(60, NOW).unwrap();
    let wrong = Secret([0; 32]);
    let code = |tokens: &mut Tokens, id, secret, now| {
        let refusal = tokens.redeem(id, secret, WHO, now).unwrap_err();
        assert!(!refusal.hint.is_empty());
        refusal.code
    };
    assert_eq!(code(&mut tokens, TokenId([0; 8]), &secret, NOW), Code::TokenUnknown);
    assert_eq!(code(&mut tokens, id, &wrong, NOW), Code::TokenWrongSecret);
    assert_eq!(code(&mut tokens, id, &secret, later(60)), Code::TokenExpired);
    assert_eq!(code(&mut tokens, id, &wrong, later(60)), Code::TokenWrongSecret);
    tokens.redeem(id, &secret, WHO, NOW).unwrap();
    // Long after, it is forgotten as soon as another is issued.
    tokens.issue(60, later(2 * REMEMBER_SECONDS)).unwrap();
    assert_eq!(code(&mut tokens, id, &secret, later(2 * REMEMBER_SECONDS)), Code::TokenUnknown);
}

#[test]
fn tokens_are_bounded() {
    let mut tokens = Tokens::default();
    for ttl in [0, MAX_TTL_SECONDS + 1, u64::MAX] {
        assert_eq!(tokens.issue(ttl, NOW).unwrap_err().code, Code::BadTtl);
    }
    for _ in 0..MAX_LIVE_TOKENS {
        tokens.issue(60, NOW).unwrap();
    }
    assert_eq!(tokens.issue(60, NOW).unwrap_err().code, Code::TooManyTokens);
    // Used and expired ones make room, and are forgotten in the end.
    for round in 1..20 {
        for _ in 0..MAX_LIVE_TOKENS {
            let (id, secret, _) = tokens.issue(60, later(round * 61)).unwrap();
            if round % 2 == 0 {
                tokens.redeem(id, &secret, WHO, later(round * 61)).unwrap();
            }
        }
        assert!(tokens.0.len() <= MAX_REMEMBERED);
    }
}

#[test]
fn clocks_at_the_end_of_time_do_no_harm() {
    let mut tokens = Tokens::default();
    let end = UnixMillis(u64::MAX);
    let (id, secret, _) = tokens.issue(60, end).unwrap();
    tokens.redeem(id, &secret, WHO, end).unwrap();
}
