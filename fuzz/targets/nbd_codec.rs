//! What an NBD client or server may send, piece by piece.
#![no_main]

use holdfast_nbd::codec::{
    InfoRequest, MetaRequest, OptionHeader, OptionReplyHeader, ReplyHeader, ReplyStyle,
    RequestHeader,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(head) = data.first_chunk() {
        let _ = OptionHeader::parse(head);
    }
    if let Some(head) = data.first_chunk() {
        let _ = OptionReplyHeader::parse(head);
    }
    if let Ok(request) = InfoRequest::parse(data) {
        assert_eq!(request.encode(), data);
    }
    if let Ok(request) = MetaRequest::parse(data) {
        assert_eq!(request.encode(), data);
    }
    for style in [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended] {
        if let Ok(Some(request)) = RequestHeader::parse(style, data) {
            let mut again = Vec::new();
            request.encode(style, &mut again);
            assert_eq!(again, data[..RequestHeader::wire_len(style)]);
        }
        let Some((magic, rest)) = data.split_first_chunk() else { continue };
        if let Ok(len) = ReplyHeader::rest_len(style, *magic) {
            assert_eq!(ReplyHeader::parse(*magic, rest).is_ok(), rest.len() >= len);
        }
    }
});
