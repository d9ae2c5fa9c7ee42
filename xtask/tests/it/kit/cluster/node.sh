#!/bin/sh
# Makes a server a node of a cluster of two. The first node has the control plane and the
# registry, too. Its arguments: the number and address of this node, the number and
# address of the other one, and the name that images have for the registry.
set -eu
number=$1 address=$2 peer_number=$3 peer_address=$4 registry=$5
node=node$number
case $number in
    1) control=$address ;;
    *) control=$peer_address ;;
esac
directory=/etc/kubernetes

# Within the network of the nodes, because Docker lets nothing else pass between them.
pods_of() { # NUMBER
    echo "${address%.*}.$(($1 * 64))/26"
}

main() {
    mkdir -p "$directory"
    write_preparation
    write_runtime
    write_kubelet
    write_proxy
    if [ "$number" = 1 ]; then write_control_plane; fi
    systemctl daemon-reload
    # shellcheck disable=SC2046
    systemctl enable --now --no-block $(cat "$directory/units")
}

unit() { # NAME COMMAND
    printf '%s\n' '[Unit]' 'After=prepare.service' 'Requires=prepare.service' 'StartLimitIntervalSec=0' \
        '[Service]' "ExecStart=$2" 'Restart=always' 'RestartSec=1' 'KillMode=process' 'Delegate=yes' \
        '[Install]' 'WantedBy=multi-user.target' >"/etc/systemd/system/$1.service"
    echo "$1.service" >>"$directory/units"
}

kubeconfig() { # TOKEN
    cat >"$directory/$1" <<END
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$control:6443", insecure-skip-tls-verify: true}}]
users: [{name: $1, user: {token: $1}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
END
}

# At each boot. kubelet sets tunables of the kernel, which is not the node's own: it gets
# files of its own in their place. Its pods get a cgroup inside that of this machine.
write_preparation() {
    cat >"$directory/prepare" <<END
#!/bin/sh
set -eu
mount --make-rshared /
mount -o remount,rw /proc/sys
[ -e /dev/kmsg ] || ln -s /dev/null /dev/kmsg
for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=/run/tunables/\${tunable%=*}
    mkdir -p "\${file%/*}"
    echo "\${tunable#*=}" >"\$file"
    mount --bind "\$file" "/proc/sys/\${tunable%=*}"
done
own=\$(sed -n -e 's,/init.scope\$,,' -e 's,^[0-9]*:memory:,,p' -e 's,^0::,,p' /proc/1/cgroup | head -n 1)
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ ! -e "\$hierarchy/cgroup.procs" ] || mkdir -p "\$hierarchy\$own/kubelet"
done
sed "s,@CGROUP@,\$own/kubelet," $directory/kubelet.yaml.in >$directory/kubelet.yaml
# An interface in a network of its own is there a moment after the container.
ip route replace $(pods_of "$peer_number") via $peer_address
END
    chmod +x "$directory/prepare"
    printf '%s\n' '[Unit]' 'After=network.target' '[Service]' 'Type=oneshot' 'RemainAfterExit=yes' \
        "ExecStart=$directory/prepare" >/etc/systemd/system/prepare.service
}

write_runtime() {
    mkdir -p /etc/containerd /etc/cni/net.d
    cat >/etc/containerd/config.toml <<END
version = 2
oom_score = 0
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "cutover-test/pause:1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."$registry"]
endpoint = ["http://$control:5000"]
END
    cat >/etc/cni/net.d/10-bridge.conflist <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "/run/cni",
              "ranges": [[{"subnet": "$(pods_of "$number")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
    unit containerd /usr/bin/containerd
}

write_kubelet() {
    cat >"$directory/kubelet.yaml.in" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: "@CGROUP@"
enforceNodeAllocatable: []
evictionHard: {memory.available: 10Mi, nodefs.available: 1%, imagefs.available: 1%}
failSwapOn: false
nodeStatusUpdateFrequency: 4s
oomScoreAdj: 0
END
    kubeconfig "$node"
    unit kubelet "/usr/local/bin/kubelet --config=$directory/kubelet.yaml --kubeconfig=$directory/$node \
--container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
--hostname-override=$node --node-ip=$address"
}

write_proxy() {
    kubeconfig proxy
    unit kube-proxy "/usr/local/bin/kube-proxy --kubeconfig=$directory/proxy --hostname-override=$node \
--proxy-mode=iptables --conntrack-max-per-core=0 --conntrack-min=0 \
--conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --oom-score-adj=0"
}

# A token is its user's name. `deployer` gets rights from a test, `stranger` never.
write_control_plane() {
    for user in scheduler controller-manager; do kubeconfig "$user"; done
    cat >"$directory/tokens" <<END
admin,admin,1,system:masters
node1,system:node:node1,2,system:nodes
node2,system:node:node2,3,system:nodes
proxy,system:kube-proxy,4
scheduler,system:kube-scheduler,5
controller-manager,system:kube-controller-manager,6,system:masters
deployer,deployer,7
stranger,stranger,8
END
    [ -e "$directory/key" ] || openssl genrsa -out "$directory/key" 2048
    cat >"$directory/registry.yaml" <<END
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/docker-registry}}
http: {addr: ":5000"}
END
    unit docker-registry "/usr/bin/docker-registry serve $directory/registry.yaml"
    unit etcd '/usr/bin/etcd --data-dir=/var/lib/etcd'
    unit kube-apiserver "/usr/local/bin/kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
--advertise-address=$address --secure-port=6443 --cert-dir=$directory/certificates \
--token-auth-file=$directory/tokens --authorization-mode=Node,RBAC --anonymous-auth=true \
--allow-privileged --service-cluster-ip-range=10.96.0.0/16 --enable-admission-plugins=NodeRestriction \
--service-account-issuer=https://lab --service-account-key-file=$directory/key \
--service-account-signing-key-file=$directory/key --kubelet-preferred-address-types=InternalIP"
    unit kube-controller-manager "/usr/local/bin/kube-controller-manager \
--kubeconfig=$directory/controller-manager --service-account-private-key-file=$directory/key \
--leader-elect=false --node-monitor-period=1s --node-monitor-grace-period=16s"
    unit kube-scheduler "/usr/local/bin/kube-scheduler --kubeconfig=$directory/scheduler --leader-elect=false"
}

main
