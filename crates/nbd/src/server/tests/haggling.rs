use super::super::negotiate::{Negotiation, Step, Tls};
use super::*;
use crate::codec::consts::{option_reply as kind, option_reply};
use proptest::prelude::*;

struct Haggler<'a>(Negotiation<'a>);

type Replies = Vec<(u32, Vec<u8>)>;

impl<'a> Haggler<'a> {
    fn new(exports: &'a dyn Exports, tls: Tls) -> Self {
        Self(Negotiation::new(exports, CLIENT, tls, 32 << 20, 3).unwrap())
    }

    fn ask(&mut self, code: u32, data: &[u8]) -> (Replies, Step) {
        let mut out = Vec::new();
        let step = self.0.option(code, data, &mut out);
        let mut replies = Vec::new();
        let mut rest = &out[..];
        while let Some((head, after)) = rest.split_first_chunk() {
            let head = OptionReplyHeader::parse(head).unwrap();
            assert_eq!(head.option, code);
            let (data, after) = after.split_at(head.len as usize);
            replies.push((head.kind, data.to_vec()));
            rest = after;
        }
        (replies, step)
    }

    /// The kind of the last reply.
    fn outcome(&mut self, code: u32, data: &[u8]) -> u32 {
        self.ask(code, data).0.last().unwrap().0
    }
}

fn info(name: &str) -> Vec<u8> {
    InfoRequest { name: name.into(), kinds: vec![0x7abc, 1, 2] }.encode()
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries = queries.iter().map(|query| query.as_bytes().to_vec()).collect();
    MetaRequest { name: name.into(), queries }.encode()
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let exports = Catalogue(Scripted::new(full_info()));
    let mut peer = Haggler::new(&exports, Tls::Off);
    for (code, data, answer) in [
        (0x7fff_0001, vec![1, 2, 3], kind::ERR_UNSUP),
        (4, vec![], kind::ERR_UNSUP),
        (option::LIST, vec![0], kind::ERR_INVALID),
        (option::LIST, vec![], kind::ACK),
        (option::STARTTLS, vec![], kind::ERR_POLICY),
        (option::STARTTLS, vec![0], kind::ERR_INVALID),
        (option::INFO, info("nobody"), kind::ERR_UNKNOWN),
        (option::INFO, info("tls"), kind::ERR_TLS_REQD),
        (option::INFO, info("x"), kind::ACK),
        (option::GO, info("nobody"), kind::ERR_UNKNOWN),
        (option::GO, vec![], kind::ERR_INVALID),
        (option::GO, info(&"n".repeat(5000)), kind::ERR_TOO_BIG),
        (option::SET_META_CONTEXT, meta("x", &[BASE_ALLOCATION]), kind::ERR_INVALID),
        (option::STRUCTURED_REPLY, vec![0], kind::ERR_INVALID),
        (option::STRUCTURED_REPLY, vec![], kind::ACK),
        (option::SET_META_CONTEXT, meta("nobody", &[]), kind::ERR_UNKNOWN),
        (option::SET_META_CONTEXT, meta("x", &["other:thing"]), kind::ACK),
        (option::EXTENDED_HEADERS, vec![], kind::ACK),
        (option::STRUCTURED_REPLY, vec![], kind::ERR_EXT_HEADER_REQD),
    ] {
        assert_eq!(peer.outcome(code, &data), answer, "option {code} with {data:?}");
    }
    assert!(matches!(peer.ask(option::ABORT, &[]).1, Step::HangUp));
}

#[test]
fn info_tells_what_go_tells() {
    let exports = Catalogue(Scripted::new(full_info()));
    let mut peer = Haggler::new(&exports, Tls::Off);
    let (told, _) = peer.ask(option::INFO, &info("x"));
    let (entered, step) = peer.ask(option::GO, &info("x"));
    assert_eq!(told, entered);
    assert!(matches!(step, Step::Enter(_)));
    let size = (64u64 << 20).to_be_bytes();
    assert_eq!(told[0].1[..10], [&[0, 0], &size[..]].concat());
    assert_eq!(told[1].1[..6], [0, 3, 0, 0, 0, 1]);
    assert_eq!(told[2].1, b"\0\x01x");
}

#[test]
fn contexts_hold_for_the_export_that_they_were_asked_for() {
    let exports = Catalogue(Scripted::new(full_info()));
    let entered = |queries: &[&str], then: &[&str]| {
        let mut peer = Haggler::new(&exports, Tls::Off);
        peer.ask(option::STRUCTURED_REPLY, &[]);
        peer.ask(option::SET_META_CONTEXT, &meta("x", queries));
        if !then.is_empty() {
            peer.ask(option::SET_META_CONTEXT, &meta("nobody", then));
        }
        match peer.ask(option::GO, &info("x")).1 {
            Step::Enter(session) => !session.contexts.is_empty(),
            _ => panic!("refused"),
        }
    };
    assert!(entered(&["x-other:y", BASE_ALLOCATION], &[]));
    assert!(!entered(&["base:"], &[]), "a selection names contexts in full");
    assert!(!entered(&[], &[]));
    assert!(!entered(&[BASE_ALLOCATION], &[BASE_ALLOCATION]), "a failed selection selects nothing");
    let mut peer = Haggler::new(&exports, Tls::Off);
    peer.ask(option::STRUCTURED_REPLY, &[]);
    for queries in [&[][..], &["base:"], &[BASE_ALLOCATION]] {
        let (replies, _) = peer.ask(option::LIST_META_CONTEXT, &meta("x", queries));
        assert_eq!(replies[0].1[4..], *BASE_ALLOCATION.as_bytes());
    }
}

/// An export whose contexts change.
struct Changing(RefCell<Vec<String>>);

impl Exports for Changing {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportSummary> {
        Vec::new()
    }

    fn info(&self, _name: &str, _client: &ClientInfo) -> Result<ExportInfo, OpenRefusal> {
        Ok(ExportInfo { contexts: self.0.borrow().clone(), ..full_info() })
    }

    fn open(&self, name: &str, client: &ClientInfo) -> Result<Rc<dyn Export>, OpenRefusal> {
        Ok(Rc::new(Handle(Scripted::new(self.info(name, client)?))))
    }
}

#[test]
fn a_context_is_never_taken_for_another_one() {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let exports = Changing(RefCell::new(names(&["x-holdfast:a", "x-holdfast:b"])));
    let mut peer = Haggler::new(&exports, Tls::Off);
    peer.ask(option::STRUCTURED_REPLY, &[]);
    let select = meta("x", &["x-holdfast:b"]);
    assert_eq!(peer.outcome(option::SET_META_CONTEXT, &select), kind::ACK);
    *exports.0.borrow_mut() = names(&["x-holdfast:b"]);
    assert_eq!(peer.outcome(option::GO, &info("x")), kind::ERR_INVALID);
    assert_eq!(peer.outcome(option::SET_META_CONTEXT, &select), kind::ACK);
    match peer.ask(option::GO, &info("x")).1 {
        Step::Enter(session) => assert!(session.contexts.has(1)),
        _ => panic!("refused"),
    }
}

#[test]
fn tls_comes_before_everything_where_it_is_required() {
    let exports = Catalogue(Scripted::new(full_info()));
    let mut peer = Haggler::new(&exports, Tls::Required);
    for (code, data) in [(option::LIST, vec![]), (option::GO, info("x")), (99, vec![])] {
        assert_eq!(peer.outcome(code, &data), option_reply::ERR_TLS_REQD);
    }
    assert!(matches!(peer.ask(option::EXPORT_NAME, b"x").1, Step::HangUp));
    assert!(matches!(peer.ask(option::STARTTLS, &[]).1, Step::StartTls));
    peer.0.tls_began();
    assert_eq!(peer.outcome(option::STARTTLS, &[]), option_reply::ERR_INVALID);
    assert_eq!(peer.outcome(option::GO, &info("tls")), option_reply::ACK);
}

#[test]
fn what_was_agreed_on_in_the_clear_is_forgotten_inside_tls() {
    let exports = Catalogue(Scripted::new(full_info()));
    let mut peer = Haggler::new(&exports, Tls::Offered);
    peer.ask(option::STRUCTURED_REPLY, &[]);
    peer.ask(option::SET_META_CONTEXT, &meta("x", &[BASE_ALLOCATION]));
    peer.0.tls_began();
    match peer.ask(option::GO, &info("x")).1 {
        Step::Enter(session) => {
            assert_eq!(session.style, ReplyStyle::Simple);
            assert!(session.contexts.is_empty());
        }
        _ => panic!("refused"),
    }
}

#[test]
fn the_old_way_in() {
    let exports = Catalogue(Scripted::new(full_info()));
    let start = |flags| Negotiation::new(&exports, CLIENT, Tls::Off, 32 << 20, flags);
    assert!(start(4).is_none());
    assert!(start(0x8000_0003).is_none());
    for (flags, len) in [(0, 134), (1, 134), (3, 10)] {
        let mut out = Vec::new();
        let step = start(flags).unwrap().option(option::EXPORT_NAME, b"x", &mut out);
        assert!(matches!(step, Step::Enter(_)));
        assert_eq!(out.len(), len);
        assert_eq!(out[..8], (64u64 << 20).to_be_bytes());
    }
    let mut out = Vec::new();
    assert!(matches!(start(3).unwrap().option(option::EXPORT_NAME, b"no", &mut out), Step::HangUp));
    assert!(matches!(start(0).unwrap().option(option::LIST, b"", &mut out), Step::HangUp));
    let mut extended = start(3).unwrap();
    extended.option(option::EXTENDED_HEADERS, &[], &mut Vec::new());
    assert!(matches!(extended.option(option::EXPORT_NAME, b"x", &mut out), Step::HangUp));
    assert!(out.is_empty());
}

#[test]
fn an_export_hears_of_every_session_that_ended() {
    let export = Scripted::new(full_info());
    let exports = Catalogue(Rc::clone(&export));
    drop(Haggler::new(&exports, Tls::Off).ask(option::GO, &info("x")));
    assert_eq!(export.closed.get(), 1);
    drop(Haggler::new(&exports, Tls::Off).ask(option::INFO, &info("x")));
    assert_eq!(export.closed.get(), 1, "information opens nothing");
}

proptest! {
    #[test]
    fn no_options_make_it_panic(
        options in proptest::collection::vec(
            (0..12u32, proptest::collection::vec(any::<u8>(), 0..60)), 0..20
        )
    ) {
        let exports = Catalogue(Scripted::new(full_info()));
        let mut peer = Haggler::new(&exports, Tls::Off);
        for (code, data) in options {
            let mut out = Vec::new();
            if !matches!(peer.0.option(code, &data, &mut out), Step::Continue) {
                break;
            }
        }
    }
}
