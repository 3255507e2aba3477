//! The client against the server, over a Unix socket.

mod common;

use common::Server;
use holdfast_nbd::{
    Client, ClientError, ConnectOptions, Export, ExportInfo, MemoryExport, NbdError, ReplyStyle,
};

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> ExportInfo {
    MemoryExport::new("disk", mib * MIB).info()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i % 251) as u8)).collect()
}

#[test]
fn everything_in_every_style() {
    let server = Server::start(memory(80), None);
    for style in [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended] {
        let options = ConnectOptions { style, ..ConnectOptions::default() };
        let mut client = Client::connect(&server.uri("disk"), &options).unwrap();
        assert_eq!(client.style(), style);
        assert_eq!(client.size(), 80 * MIB);
        assert!(!client.is_read_only());
        assert_eq!(client.min_block(), 1);
        assert_eq!(client.preferred_block(), 4096);

        // More than one request can carry.
        let data = pattern(40 << 20, style as u8);
        client.write_at(&data, MIB + 3).unwrap();
        client.flush().unwrap();
        let mut back = vec![0; data.len()];
        client.read_at(&mut back, MIB + 3).unwrap();
        assert!(back == data);

        client.write_zeroes(2 * MIB, MIB).unwrap();
        client.trim(4 * MIB, MIB).unwrap();
        client.write_durable_at(b"here", 2 * MIB + 100).unwrap();
        let mut some = [1; 8];
        client.read_at(&mut some, 2 * MIB + 98).unwrap();
        assert_eq!(&some, b"\0\0here\0\0");

        let status = client.block_status(60 * MIB, 20 * MIB);
        if style == ReplyStyle::Simple {
            assert!(matches!(status, Err(ClientError::Unsupported(_))));
        } else {
            let extents = status.unwrap();
            assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), 20 * MIB);
            assert_eq!(extents[0].flags, 3, "nothing was written here");
        }

        let past = client.write_at(&[0; 10], 80 * MIB - 5).unwrap_err();
        assert!(matches!(past, ClientError::Request(NbdError::NoSpace)), "{past}");
        let past = client.read_at(&mut [0; 10], 80 * MIB - 5).unwrap_err();
        assert!(matches!(past, ClientError::Request(NbdError::Invalid)), "{past}");
        client.read_at(&mut [0; 10], 80 * MIB - 10).unwrap();
        client.write_zeroes(0, 80 * MIB).unwrap();
    }
}

#[test]
fn several_clients_in_several_threads() {
    let server = Server::start(memory(16), None);
    std::thread::scope(|scope| {
        for number in 0..4u8 {
            let socket = &server.socket;
            scope.spawn(move || {
                let mut client = Client::connect_unix(socket, "").unwrap();
                let base = u64::from(number) * 4 * MIB;
                for round in 0..50 {
                    let data = pattern(8192 + round, number.wrapping_mul(round as u8));
                    let at = base + round as u64 * 16384;
                    client.write_at(&data, at).unwrap();
                    let mut back = vec![0; data.len()];
                    client.read_at(&mut back, at).unwrap();
                    assert_eq!(back, data);
                }
            });
        }
    });
}

#[test]
fn a_refusal_says_what_is_wrong() {
    let server = Server::start(memory(1), None);
    let error = Client::connect_unix(&server.socket, "nobody").unwrap_err().to_string();
    assert!(error.contains("\"nobody\"") && error.contains("no export"), "{error}");
    let gone = Client::connect_unix(server.socket.with_extension("not"), "").unwrap_err();
    assert!(matches!(gone, ClientError::Io(_)));
}

#[test]
fn read_only_and_with_few_abilities() {
    let mut info = ExportInfo::new("plain", MIB);
    info.min_block = 512;
    let server = Server::start(info.clone(), None);
    let mut client = Client::connect_unix(&server.socket, "plain").unwrap();
    assert_eq!(client.min_block(), 512);
    client.write_at(&pattern(4096, 1), 0).unwrap();
    client.write_zeroes(512, 1024).unwrap();
    client.trim(0, 512).unwrap();
    let mut back = vec![9; 2048];
    client.read_at(&mut back, 0).unwrap();
    assert_eq!(back[..512], pattern(4096, 1)[..512]);
    assert!(back[512..1536].iter().all(|byte| *byte == 0));
    let odd = client.read_at(&mut [0; 100], 0).unwrap_err();
    assert!(matches!(odd, ClientError::Request(NbdError::Invalid)));

    info.read_only = true;
    let server = Server::start(info, None);
    let mut client = Client::connect_unix(&server.socket, "plain").unwrap();
    assert!(client.is_read_only());
    let refused = client.write_at(&[0; 512], 0).unwrap_err();
    assert!(matches!(refused, ClientError::Request(NbdError::NotPermitted)));
}

#[test]
fn beyond_four_gib() {
    let server = Server::start(memory(5 << 10), None);
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let options = ConnectOptions { style, ..ConnectOptions::default() };
        let mut client = Client::connect(&server.uri(""), &options).unwrap();
        let far = (4 << 30) + 4096;
        client.write_at(b"low", 4096).unwrap();
        client.write_at(b"high", far).unwrap();
        let mut back = [0; 4];
        client.read_at(&mut back, 4096).unwrap();
        assert_eq!(&back, b"low\0");
        client.read_at(&mut back, far).unwrap();
        assert_eq!(&back, b"high");
        client.write_zeroes(0, 5 << 30).unwrap();
        let extents = client.block_status(0, 5 << 30).unwrap();
        assert_eq!(extents[0].flags, 3);
        let whole = if style == ReplyStyle::Extended { 5 << 30 } else { 1 << 31 };
        assert_eq!(extents[0].len, whole);
    }
}
