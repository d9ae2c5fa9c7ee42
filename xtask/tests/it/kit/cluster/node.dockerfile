# What every node has; which of it runs is decided when it starts.
VOLUME ["/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd", "/var/lib/docker-registry"]
ARG DEBIAN_FRONTEND=noninteractive
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
    && apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends \
        conntrack containerd containernetworking-plugins docker-registry etcd-server iptables openssl runc \
    && apt-get clean && rm -r /var/lib/apt/lists /usr/sbin/policy-rc.d \
    && systemctl disable containerd.service docker-registry.service etcd.service
