//! Serves memory over NBD: `memserver (--unix PATH | --port N) [--mib N] [--name EXPORT]
//! [--spin MICROSECONDS] [--read-only] [--tls DIRECTORY [--tls-required]]`. The directory holds
//! `server-cert.pem` and `server-key.pem`. For trying clients and for measuring the server alone.

use holdfast_nbd::{
    ClientInfo, ClientStream, Export, MemoryExport, NbdUri, ServerOptions, ServerTls, SingleExport,
    Spinner, serve,
};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

struct Arguments {
    unix: Option<String>,
    port: u16,
    mib: u64,
    name: String,
    spin: u64,
    read_only: bool,
    tls: Option<PathBuf>,
    tls_required: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        unix: None,
        port: 10809,
        mib: 64,
        name: String::new(),
        spin: 0,
        read_only: false,
        tls: None,
        tls_required: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text:?} is no number"));
        match word.as_str() {
            "--unix" => parsed.unix = Some(value()?),
            "--port" => {
                let port = u16::try_from(number(value()?)?);
                parsed.port = port.map_err(|_| "a port is below 65536".to_owned())?;
            }
            "--mib" => parsed.mib = number(value()?)?,
            "--name" => parsed.name = value()?,
            "--spin" => parsed.spin = number(value()?)?,
            "--read-only" => parsed.read_only = true,
            "--tls" => parsed.tls = Some(value()?.into()),
            "--tls-required" => parsed.tls_required = true,
            other => return Err(format!("{other:?} is not an option")),
        }
    }
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let mut info = MemoryExport::new(&arguments.name, arguments.mib << 20).info();
    info.read_only = arguments.read_only;
    let exports = Rc::new(SingleExport(MemoryExport::with_info(info)));
    let spinner = Spinner::new(Duration::from_micros(arguments.spin));
    let tls = arguments.tls.as_deref().map(|dir| tls(dir, arguments.tls_required)).transpose()?;
    let options = Rc::new(ServerOptions {
        spinner: Some(Rc::clone(&spinner)),
        tls,
        ..ServerOptions::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    tasks.spawn_local(spinner.run());
    tasks.block_on(&runtime, run(arguments, exports, options))
}

fn tls(directory: &Path, required: bool) -> Result<ServerTls, Box<dyn std::error::Error>> {
    let chain = CertificateDer::pem_file_iter(directory.join("server-cert.pem"))?;
    let key = PrivateKeyDer::from_pem_file(directory.join("server-key.pem"))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
    Ok(ServerTls { acceptor: TlsAcceptor::from(Arc::new(config)), required })
}

async fn run(
    arguments: Arguments,
    exports: Rc<SingleExport<MemoryExport>>,
    options: Rc<ServerOptions>,
) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(path) = &arguments.unix {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        println!("{}", NbdUri::unix(path, arguments.name));
        loop {
            let (stream, _) = listener.accept().await?;
            let client = ClientInfo::unix(&stream);
            connection(stream, client, &exports, &options);
        }
    }
    let listener = TcpListener::bind(("127.0.0.1", arguments.port)).await?;
    println!("{}", NbdUri::tcp("127.0.0.1", listener.local_addr()?.port(), arguments.name));
    loop {
        let (stream, address) = listener.accept().await?;
        stream.set_nodelay(true)?;
        connection(stream, ClientInfo::tcp(address), &exports, &options);
    }
}

fn connection<S>(
    stream: S,
    client: ClientInfo,
    exports: &Rc<SingleExport<MemoryExport>>,
    options: &Rc<ServerOptions>,
) where
    S: ClientStream + 'static,
{
    let (exports, options) = (Rc::clone(exports), Rc::clone(options));
    tokio::task::spawn_local(async move {
        if let Err(error) = serve(stream, &client, &*exports, &options).await {
            eprintln!("{}: {error}", client.address);
        }
    });
}
