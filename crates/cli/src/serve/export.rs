//! The exports of the server, as the NBD engine sees them.

use super::volume::Volume;
use holdfast_nbd::{
    ClientInfo, Export, ExportInfo, ExportSummary, Exports, OpenRefusal, Refusal, Reply, Request,
};
use std::rc::Rc;

/// The context that tells what was changed since the server started.
pub(super) const CHANGED_CONTEXT: &str = "x-holdfast:changed";

/// One export.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) read_only: bool,
    /// Clients may make it larger.
    pub(super) resizable: bool,
    pub(super) volume: Rc<Volume>,
}

impl Served {
    fn info(&self) -> ExportInfo {
        self.volume.look_again();
        let mut info = ExportInfo::new(self.name.clone(), self.volume.size());
        info.description.clone_from(&self.description);
        info.read_only = self.read_only;
        info.can_trim = true;
        info.can_zero = true;
        info.can_fast_zero = true;
        info.can_cache = true;
        // All connections use the same files, and a flush covers what any of them has written.
        info.can_multi_conn = true;
        info.can_block_status = true;
        info.can_resize = self.resizable && self.volume.can_grow();
        if self.volume.tracks_changes() {
            info.contexts.push(CHANGED_CONTEXT.to_owned());
        }
        self.volume.with_parts(|parts| {
            info.rotational = parts.iter().any(|part| part.info().rotational == Some(true));
            for part in parts {
                info.min_block = info.min_block.max(part.info().block_size);
            }
        });
        info
    }
}

/// All exports. The first is also the default one.
pub(super) struct Catalogue {
    pub(super) all: Vec<Served>,
    /// Whether they are entered inside TLS only.
    pub(super) tls_only: bool,
}

impl Catalogue {
    fn find(&self, name: &str, client: &ClientInfo) -> Result<&Served, OpenRefusal> {
        if self.tls_only && !client.tls {
            return Err(OpenRefusal::new(Refusal::TlsRequired, "exports are entered by TLS only"));
        }
        let named = self.all.iter().find(|served| served.name == name);
        let default = || self.all.first().filter(|_| name.is_empty());
        named.or_else(default).ok_or_else(|| OpenRefusal::unknown(name))
    }
}

impl Exports for Catalogue {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportSummary> {
        let summary = |served: &Served| ExportSummary {
            name: served.name.clone(),
            description: served.description.clone(),
        };
        self.all.iter().map(summary).collect()
    }

    fn info(&self, name: &str, client: &ClientInfo) -> Result<ExportInfo, OpenRefusal> {
        self.find(name, client).map(Served::info)
    }

    fn open(&self, name: &str, client: &ClientInfo) -> Result<Rc<dyn Export>, OpenRefusal> {
        Ok(Rc::new(Opened(self.find(name, client)?.clone())))
    }
}

/// An export that a client has entered.
struct Opened(Served);

impl Export for Opened {
    fn info(&self) -> ExportInfo {
        self.0.info()
    }

    fn size(&self) -> u64 {
        self.0.volume.look_again();
        self.0.volume.size()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.0.volume.submit(request, reply);
    }

    fn batch_submitted(&self) {
        self.0.volume.kick();
    }
}
