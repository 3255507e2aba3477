//! Serves memory over NBD: `memserver (--unix PATH | --port N) [--mib N] [--name EXPORT]
//! [--spin MICROSECONDS] [--read-only]`. For trying clients and for measuring the server alone.

use holdfast_nbd::{ClientInfo, Export, MemoryExport, NbdUri, ServerOptions, SingleExport, serve};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::LocalSet;

struct Arguments {
    unix: Option<String>,
    port: u16,
    mib: u64,
    name: String,
    spin: u64,
    read_only: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        unix: None,
        port: 10809,
        mib: 64,
        name: String::new(),
        spin: 0,
        read_only: false,
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
    let spin = Duration::from_micros(arguments.spin);
    let options = Rc::new(ServerOptions { spin, ..ServerOptions::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, run(arguments, exports, options))
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
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (exports, options) = (Rc::clone(exports), Rc::clone(options));
    tokio::task::spawn_local(async move {
        if let Err(error) = serve(stream, &client, &*exports, &options).await {
            eprintln!("{}: {error}", client.address);
        }
    });
}
