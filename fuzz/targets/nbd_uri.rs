//! The URI of an NBD export: refused, or its `Display` is read as the same again.
#![no_main]

use holdfast_nbd::NbdUri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for start in ["", "nbd://", "nbds://[::1]", "nbd+unix:///", "nbds+unix:///?socket="] {
        if let Ok(uri) = format!("{start}{text}").parse::<NbdUri>() {
            assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }
});
