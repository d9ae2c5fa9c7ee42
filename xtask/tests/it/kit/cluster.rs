//! A real cluster of two nodes, each a container like the servers of `lab`, with a real
//! registry. One is started for all tests of a process, and each test has a namespace.
//!
//! A cluster of somebody's own, such as kind's or k3d's, is taken instead if
//! `CLUSTER_KUBECONFIG` names the file of an administrator and `CLUSTER_REGISTRY` a registry.
//! Its nodes are left alone.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    configured::{by, edited_xtask},
    http,
    lab::{Server, base_image, image_from, server_image},
    place::wait_until,
    workspace::{Said, Workspace, said},
};

const KUBERNETES: &str = include_str!("cluster/kubernetes.dockerfile");
const NODE: &str = include_str!("cluster/node.dockerfile");
const NODE_SETUP: &str = include_str!("cluster/node.sh");

/// The namespaces of the tests. Each is a target of the same name.
const NAMESPACES: &[&str] = &[
    "live", "commands", "switches", "bad", "lost", "killed", "refused", "two", "measured", "late",
    "scaled", "logs",
];

pub struct Cluster {
    /// `None` for nodes that are not ours.
    pub nodes: Option<[Server; 2]>,
    /// Of a node.
    address: IpAddr,
    kubeconfig: PathBuf,
    /// Where the API lists pods, without TLS and without a user.
    api: String,
    registry: String,
    xtask: PathBuf,
}

/// A test that breaks a node has the cluster alone.
static GATE: RwLock<()> = RwLock::new(());

#[allow(dead_code)] // only held
enum Pass {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Cluster {
    fn get() -> &'static Cluster {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| match env::var_os("CLUSTER_KUBECONFIG") {
            Some(kubeconfig) => Cluster::given(kubeconfig.as_ref()),
            None => Cluster::start().unwrap(),
        })
    }

    fn given(kubeconfig: &Path) -> Cluster {
        let registry = env::var("CLUSTER_REGISTRY").expect("CLUSTER_REGISTRY names a registry");
        let kubeconfig = write_kubeconfig_of(kubeconfig);
        let mut cluster = Cluster {
            nodes: None,
            address: Ipv4Addr::LOCALHOST.into(),
            api: start_proxy(&kubeconfig).unwrap(),
            kubeconfig,
            xtask: xtask_for("cluster", &registry, &[]),
            registry,
        };
        let address =
            "--output=jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}";
        let address = cluster.kubectl(&["get", "nodes", address]);
        cluster.address = address.trim().parse().expect("a node has an address");
        cluster
    }

    fn start() -> Result<Cluster> {
        let start = Instant::now();
        let image = node_image()?;
        let nodes = Server::start_two(&image, ["node1", "node2"], NODE_FLAGS)?;
        remove_nodes_at_exit(&nodes)?;
        let registry = forward_registry(nodes[0].ip())?;
        let pause = image_from("pause", "scratch", &pause_steps()?)?;
        for (number, node) in nodes.iter().enumerate() {
            set_up(node, number, &nodes, &registry, &pause)?;
        }
        let kubeconfig = write_kubeconfig_for(nodes[0].ip())?;
        let cluster = Cluster {
            address: nodes[0].ip().into(),
            nodes: Some(nodes),
            api: start_proxy(&kubeconfig)?,
            kubeconfig,
            xtask: xtask_for("cluster", &registry, &[]),
            registry,
        };
        cluster.wait_until_ready();
        println!("a cluster is ready after {:?}", start.elapsed());
        Ok(cluster)
    }

    fn wait_until_ready(&self) {
        let ready = "--output=jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
        wait_patiently("the nodes to be ready", || {
            self.kubectl(&["get", "nodes", ready]).trim() == "True True"
        });
    }

    /// The xtask with these edits of the manifest of the pods.
    pub fn xtask_with_manifest(&self, name: &str, edits: &[(&str, &str)]) -> PathBuf {
        xtask_for(name, &self.registry, edits)
    }

    /// As the administrator.
    pub fn kubectl(&self, args: &[&str]) -> String {
        kubectl(&self.kubeconfig, args)
    }

    /// The same xtask, but a rollout without progress fails after 25 s instead of a minute.
    fn impatient_xtask(&self) -> &'static Path {
        static XTASK: OnceLock<PathBuf> = OnceLock::new();
        XTASK.get_or_init(|| {
            let deadline = "progressDeadlineSeconds: @PROGRESS_SECS@";
            let edit = (deadline, "progressDeadlineSeconds: 25");
            self.xtask_with_manifest("impatient", &[edit])
        })
    }
}

/// Until the test process ends.
fn start_proxy(kubeconfig: &Path) -> Result<String> {
    let mut proxy = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["proxy", "--port=0"])
        // Every user of this machine can reach the proxy, so it only lists pods.
        .arg("--accept-paths=^/api/v1/namespaces/[^/]+/pods$")
        .arg("--reject-methods=POST|PUT|PATCH|DELETE")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    at_exit("kill \"$1\"", &[&proxy.id().to_string()])?;
    let mut line = String::new();
    let output = proxy.stdout.take().context("no output")?;
    BufReader::new(output).read_line(&mut line)?;
    let address = line.trim_end().strip_prefix("Starting to serve on ");
    let address = address.with_context(|| format!("no proxy: {line:?}"))?;
    Ok(format!("http://{address}/api/v1"))
}

fn kubectl(kubeconfig: &Path, args: &[&str]) -> String {
    let mut kubectl = Command::new("kubectl");
    let kubectl = kubectl.arg("--kubeconfig").arg(kubeconfig).args(args);
    let output = kubectl.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

/// For what takes a busy machine long. Asks rarely, because each kubectl is work, too.
pub fn wait_patiently(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(500));
    }
}

const NODE_FLAGS: &[&str] = &[
    "--sysctl=net.ipv4.conf.all.route_localnet=1",
    "--cap-add=SYS_PTRACE",
];

fn node_image() -> Result<String> {
    let programs = image_from("kubernetes", &base_image()?, KUBERNETES)?;
    let steps = format!("{NODE}COPY --from={programs} /usr/local/bin/ /usr/local/bin/\n");
    image_from("node", &server_image()?, &steps)
}

fn pause_steps() -> Result<String> {
    let programs = image_from("kubernetes", &base_image()?, KUBERNETES)?;
    Ok(format!(
        "COPY --from={programs} /usr/local/bin/pause /\nENTRYPOINT [\"/pause\"]\n"
    ))
}

fn remove_nodes_at_exit(nodes: &[Server; 2]) -> Result<()> {
    let registry = registry_address().to_string();
    let [one, other] = nodes.each_ref().map(Server::container);
    at_exit(
        "docker rm --force --volumes \"$1\" \"$2\"; docker network rm \"$3\"
        docker images --quiet --filter \"reference=$4/*\" | sort -u | xargs docker rmi --force",
        &[one, other, nodes[0].network(), &registry],
    )
}

/// Nothing is dropped at the end of a test process. So a shell waits for that, even if the
/// process is killed.
fn at_exit(script: &str, args: &[&str]) -> Result<()> {
    let reaper = Command::new("setsid")
        .args(["sh", "-c", &format!("cat; {script}"), "sh"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    std::mem::forget(reaper.stdin);
    Ok(())
}

/// Docker pushes without TLS only to this machine's own addresses.
fn registry_address() -> SocketAddr {
    let [_, _, c, d] = process::id().to_be_bytes();
    (Ipv4Addr::new(127, 77, c, d), 5000).into()
}

/// Returns the registry's name.
fn forward_registry(node: Ipv4Addr) -> Result<String> {
    let listener = TcpListener::bind(registry_address())?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || forward(client, (node, 5000).into()));
        }
    });
    Ok(registry_address().to_string())
}

/// What the registry was sent.
pub static PUSHED_BYTES: AtomicU64 = AtomicU64::new(0);

fn forward(client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(to)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let request = thread::spawn(move || {
        let sent = io::copy(&mut from_client, &mut to_server);
        PUSHED_BYTES.fetch_add(sent.unwrap_or(0), Relaxed);
        to_server.shutdown(Shutdown::Write)
    });
    let (mut from_server, mut to_client) = (server, client);
    io::copy(&mut from_server, &mut to_client)?;
    let _ = to_client.shutdown(Shutdown::Write);
    let _ = request.join();
    Ok(())
}

fn set_up(
    node: &Server,
    index: usize,
    nodes: &[Server; 2],
    registry: &str,
    pause: &str,
) -> Result<()> {
    let peer = &nodes[1 - index];
    let words = [
        (index + 1).to_string(),
        node.ip().to_string(),
        (2 - index).to_string(),
        peer.ip().to_string(),
        registry.to_owned(),
    ];
    let words = words.each_ref().map(String::as_str);
    let output = node.exec(&[&["sh", "-c", NODE_SETUP, "node"][..], &words].concat())?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "no node: {complaint}");
    load_image(node, pause)
}

/// The image in which a pod waits. It is in no registry.
fn load_image(node: &Server, image: &str) -> Result<()> {
    let command = format!(
        "set -e; docker tag {image} cutover-test/pause:1; docker save cutover-test/pause:1 |
        docker exec --interactive {} sh -c '
            until ctr version >/dev/null 2>&1; do sleep 0.1; done
            ctr --namespace k8s.io images import -'",
        node.container()
    );
    let output = Command::new("sh").args(["-c", &command]).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "no image: {complaint}");
    Ok(())
}

fn kubeconfig() -> PathBuf {
    env::temp_dir().join(format!("cutover-test-{}.kubeconfig", process::id()))
}

/// Users who are called like their tokens.
fn write_kubeconfig_for(control: Ipv4Addr) -> Result<PathBuf> {
    let cluster = format!("{{server: 'https://{control}:6443', insecure-skip-tls-verify: true}}");
    write_kubeconfig(&cluster, |name| format!("{{token: {name}}}"))
}

/// The administrator, and two users whom he impersonates.
fn write_kubeconfig_of(administrator: &Path) -> PathBuf {
    let part = |path: &str| {
        let output = format!("--output=jsonpath={{{path}}}");
        let view = ["config", "view", "--raw", "--flatten", "--minify", &output];
        kubectl(administrator, &view)
    };
    let (cluster, admin) = (part(".clusters[0].cluster"), part(".users[0].user"));
    let fields = admin.strip_prefix('{').expect("a user of the kubeconfig");
    let user = |name: &str| match name {
        "admin" => admin.clone(),
        _ => format!("{{\"as\": \"{name}\", {fields}"),
    };
    write_kubeconfig(&cluster, user).unwrap()
}

/// A context for each user. Only `admin` has rights from the start.
fn write_kubeconfig(cluster: &str, user: impl Fn(&str) -> String) -> Result<PathBuf> {
    let names = ["admin", "deployer", "stranger"];
    let user = |name| format!("{{name: {name}, user: {}}}", user(name));
    let context = |name| format!("{{name: {name}, context: {{cluster: lab, user: {name}}}}}");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: lab, cluster: {cluster}}}]\n\
         users: [{}]\ncontexts: [{}]\ncurrent-context: admin\n",
        names.map(user).join(", "),
        names.map(context).join(", ")
    );
    let path = kubeconfig();
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    at_exit("rm -f \"$1\"", &[&path.to_string_lossy()])?;
    Ok(path)
}

/// The xtask with a target for each namespace, and some that are wrong.
fn xtask_for(name: &str, registry: &str, manifest: &[(&str, &str)]) -> PathBuf {
    let target = |name: &str, context: &str, namespace: &str| {
        format!(
            "Target {{ name: {name:?}, settle_secs: 1.0, kubernetes: Some(Kubernetes {{ \
             context: {context:?}, namespace: {namespace:?}, image: \"{registry}/{namespace}\", \
             replicas: 2 }}), ..DEFAULTS }},\n"
        )
    };
    let mut targets: String = NAMESPACES
        .iter()
        .map(|name| target(name, "deployer", name))
        .collect();
    targets += &target("wrong-context", "elsewhere", "refused");
    targets += &target("no-rights", "stranger", "refused");
    targets += &target("no-namespace", "admin", "nowhere");
    let start = "pub const TARGETS: &[Target] = &[\n";
    let drain = "DRAIN_SECS: u32 = 30";
    let config = "src/config.rs";
    let mut edits = vec![
        (config, start, format!("{start}{targets}")),
        (config, drain, "DRAIN_SECS: u32 = 10".to_owned()),
    ];
    let manifest = manifest
        .iter()
        .map(|(from, to)| ("kubernetes/deployment.yaml", *from, (*to).to_owned()));
    edits.extend(manifest);
    let edits: Vec<_> = edits
        .iter()
        .map(|(file, from, to)| (*file, *from, &**to))
        .collect();
    edited_xtask(name, &edits)
}

/// A namespace, and the workspace of a client that deploys to it.
pub struct Namespace {
    pub workspace: Workspace,
    pub name: &'static str,
    pub cluster: &'static Cluster,
    _pass: Pass,
}

impl Namespace {
    pub fn new(name: &'static str) -> Namespace {
        let cluster = Cluster::get();
        let pass = GATE.read().unwrap_or_else(|it| it.into_inner());
        Namespace::with(name, cluster, Pass::Shared(pass))
    }

    /// Waits until no other test uses the cluster.
    pub fn alone(name: &'static str) -> Namespace {
        let cluster = Cluster::get();
        let pass = GATE.write().unwrap_or_else(|it| it.into_inner());
        Namespace::with(name, cluster, Pass::Alone(pass))
    }

    fn with(name: &'static str, cluster: &'static Cluster, pass: Pass) -> Namespace {
        assert!(NAMESPACES.contains(&name), "{name} is not in NAMESPACES");
        let namespace = Namespace {
            workspace: Workspace::new(name),
            name,
            cluster,
            _pass: pass,
        };
        wait_until("the namespace of a former run to be gone", || {
            let created = cluster.kubectl(&["create", "namespace", name]);
            created.contains(" created")
        });
        let grant = ["create", "rolebinding", "deployer", "--clusterrole=edit"];
        namespace.kubectl(&[&grant[..], &["--user=deployer"]].concat());
        namespace
    }

    /// Ready for a deploy, and reachable from this machine.
    pub fn set_up(name: &'static str) -> Namespace {
        Namespace::new(name).prepared()
    }

    pub fn prepared(self) -> Namespace {
        self.xtask("setup", &[]).succeeds();
        self.kubectl(&[
            "patch",
            "service/app",
            "--patch={\"spec\": {\"type\": \"NodePort\"}}",
        ]);
        self
    }

    /// As the administrator.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.cluster
            .kubectl(&[&["--namespace", self.name][..], args].concat())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = by(&self.cluster.xtask, &self.workspace.command(args));
        command.env("KUBECONFIG", &self.cluster.kubeconfig);
        command
    }

    pub fn xtask(&self, command: &str, args: &[&str]) -> Said {
        self.on(self.name, command, args)
    }

    /// With another target.
    pub fn on(&self, target: &str, command: &str, args: &[&str]) -> Said {
        said(&mut self.command(&[&[command, target], args].concat()))
    }

    pub fn build(&self, binary: &[u8]) {
        fs::write(self.workspace.root.join("binary"), binary).unwrap();
    }

    pub fn deploy(&self, binary: &[u8]) -> Said {
        self.build(binary);
        self.xtask("deploy", &["--build", "host"])
    }

    /// A deploy that has to fail, and fails sooner. The next deploy waits as long as ever.
    pub fn deploy_impatiently(&self, binary: &[u8]) -> Said {
        self.build(binary);
        let deploy = self.command(&["deploy", self.name, "--build", "host"]);
        said(&mut by(self.cluster.impatient_xtask(), &deploy))
    }

    pub fn deploy_first(&self, binary: &[u8]) -> String {
        let live = self.deploy(binary).succeeds();
        self.wait_for_route();
        live
    }

    /// A node that knew of no pod refuses connections until it hears of the first one.
    pub fn wait_for_route(&self) {
        let address = self.address();
        wait_until("the first node to route", || {
            http::served(address).is_some()
        });
    }

    /// The Service's port on the first node.
    pub fn address(&self) -> SocketAddr {
        let port = "--output=jsonpath={.spec.ports[0].nodePort}";
        let port = self.kubectl(&["get", "service/app", port]);
        let port = port.trim().parse().unwrap_or_else(|_| panic!("{port}"));
        (self.cluster.address, port).into()
    }

    pub fn served(&self) -> String {
        http::served(self.address()).unwrap()
    }

    /// `None` if the API does not answer. A kubectl would cost a tenth of a second of a
    /// processor, and a test that waits asks often.
    pub fn pods(&self) -> Option<usize> {
        // For curl the JSON would be pretty. A server of Kubernetes 1.20 that was built with
        // Go 1.19 crashes when it makes that.
        let (api, namespace) = (&self.cluster.api, self.name);
        let list = format!("{api}/namespaces/{namespace}/pods?pretty=false");
        let curl = [
            "--silent",
            "--fail",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            &list,
        ];
        let output = Command::new("curl").args(curl).output().unwrap();
        let list = String::from_utf8_lossy(&output.stdout);
        let pods = list.matches("\"creationTimestamp\":\"2").count();
        output.status.success().then_some(pods)
    }

    /// A pod goes after its linger and drain, and on a busy machine a while later.
    pub fn wait_for_pods(&self, count: usize) {
        wait_patiently(&format!("{count} pods"), || self.pods() == Some(count));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.kubectl(&["get", "all,events", "--output=wide"]));
        }
        let _ = io::stderr().flush();
        self.cluster
            .kubectl(&["delete", "namespace", self.name, "--wait=false"]);
    }
}
