//! The resources of a shard, and the NBD exports that they are.

use super::export::NbdExport;
use super::past::Past;
use super::resource::Resource;
use holdfast_nbd::{
    ClientInfo, Export, ExportInfo, ExportSummary, Exports, OpenRefusal, Refusal, ShutdownHandle,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The resources of a shard by name.
#[derive(Default)]
pub(super) struct Registry(RefCell<BTreeMap<String, Place>>);

enum Place {
    /// It is being opened, or closed.
    Taken,
    Open(Rc<Resource>),
    /// Its disk is shown as it was.
    Shown(Rc<Past>),
}

/// What is behind an export.
enum Found {
    Open(Rc<Resource>),
    Shown(Rc<Past>),
}

impl Registry {
    /// Takes a name for a resource that is about to be opened. False when it is in use.
    pub(super) fn reserve(&self, name: &str) -> bool {
        let mut places = self.0.borrow_mut();
        let free = !places.contains_key(name);
        if free {
            places.insert(name.to_owned(), Place::Taken);
        }
        free
    }

    pub(super) fn insert(&self, name: &str, resource: &Rc<Resource>) {
        self.0.borrow_mut().insert(name.to_owned(), Place::Open(Rc::clone(resource)));
    }

    /// The disk of a resource that is not open is shown as it was.
    pub(super) fn show(&self, name: &str, past: &Rc<Past>) {
        self.0.borrow_mut().insert(name.to_owned(), Place::Shown(Rc::clone(past)));
    }

    /// Nobody finds the resource any more, but its name stays taken.
    pub(super) fn hide(&self, name: &str) {
        self.0.borrow_mut().insert(name.to_owned(), Place::Taken);
    }

    pub(super) fn remove(&self, name: &str) {
        self.0.borrow_mut().remove(name);
    }

    /// The names of all exports that can be opened now.
    fn exported(&self) -> Vec<String> {
        let places = self.0.borrow();
        let exported = places.iter().filter(|(_, place)| match place {
            Place::Open(resource) => resource.is_exported(),
            Place::Shown(_) => true,
            Place::Taken => false,
        });
        exported.map(|(name, _)| name.clone()).collect()
    }

    /// The resource behind an export. The name `""` means the only one that can be opened.
    fn find(&self, name: &str) -> Result<(String, Found), OpenRefusal> {
        let exported = self.exported();
        let name = match (name, exported.as_slice()) {
            ("", [only]) => only.as_str(),
            ("", _) => {
                let message = "there is no default export: say the name of a resource";
                return Err(OpenRefusal::new(Refusal::Unknown, message));
            }
            (name, _) => name,
        };
        let places = self.0.borrow();
        match places.get(name) {
            Some(Place::Open(resource)) if resource.is_exported() => {
                Ok((name.to_owned(), Found::Open(Rc::clone(resource))))
            }
            Some(Place::Shown(past)) => Ok((name.to_owned(), Found::Shown(Rc::clone(past)))),
            Some(_) => Err(OpenRefusal::new(
                Refusal::Policy,
                format!("the resource {name} is not Primary on this node"),
            )),
            None => Err(OpenRefusal::unknown(name)),
        }
    }
}

/// What one connection sees of the registry.
pub(super) struct ConnectionExports {
    registry: Rc<Registry>,
    /// Ends the connection; goes to the resource that it opens.
    end: Cell<Option<ShutdownHandle>>,
}

impl ConnectionExports {
    pub(super) fn new(registry: &Rc<Registry>, end: ShutdownHandle) -> Self {
        Self { registry: Rc::clone(registry), end: Cell::new(Some(end)) }
    }
}

impl Exports for ConnectionExports {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportSummary> {
        let names = self.registry.exported();
        let summary = |name| ExportSummary { name, description: String::new() };
        names.into_iter().map(summary).collect()
    }

    fn info(&self, name: &str, _client: &ClientInfo) -> Result<ExportInfo, OpenRefusal> {
        Ok(match self.registry.find(name)? {
            (name, Found::Open(resource)) => NbdExport::describe(&name, &resource),
            (_, Found::Shown(past)) => past.info(),
        })
    }

    fn open(&self, name: &str, client: &ClientInfo) -> Result<Rc<dyn Export>, OpenRefusal> {
        let (name, found) = self.registry.find(name)?;
        let Some(end) = self.end.take() else {
            return Err(OpenRefusal::new(Refusal::Policy, "this connection has an export open"));
        };
        Ok(match found {
            Found::Open(resource) => Rc::new(NbdExport::open(&name, resource, client.address, end)),
            Found::Shown(past) => Rc::new(past.open(client.address, end)),
        })
    }
}
