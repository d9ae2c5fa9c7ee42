# The programs of Kubernetes, built from Debian's source package, which has no packages of
# them for servers. One step does it all, so that the image keeps the programs alone. A
# volume is a folder of the machine's disk, which is faster than the layers of an image.
VOLUME /build
ARG DEBIAN_FRONTEND=noninteractive
RUN set -eu; mkdir -p /build && cd /build \
    && sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list \
    && apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends dpkg-dev \
    && apt-get --option Acquire::Retries=3 download golang-1.19-go golang-1.19-src \
    && for package in golang-*.deb; do dpkg-deb --extract "$package" /build/go; done \
    && apt-get --option Acquire::Retries=3 source kubernetes \
    && export PATH="/build/go/usr/lib/go-1.19/bin:$PATH" GOPATH=/build GOCACHE=/build/cache GOTMPDIR=/build GOGC=400 \
    && export GO111MODULE=off CGO_ENABLED=0 \
    && mkdir -p src/k8s.io && mv kubernetes-*/ src/k8s.io/kubernetes && cd src/k8s.io/kubernetes \
    # The one generated file that the package lacks describes the API.
    && described=$(grep --recursive --files-with-matches --include='*.go' '^// *+k8s:openapi-gen=' pkg staging/src/k8s.io \
        | grep -v -e code-generator -e sample-apiserver -e zz_generated | xargs -n 1 dirname | sort -u \
        | sed -e 's,^staging/src/,vendor/,' -e 's,^,k8s.io/kubernetes/,' | paste -sd ,) \
    && go run ./vendor/k8s.io/kube-openapi/cmd/openapi-gen --input-dirs "$described" \
        --output-package k8s.io/kubernetes/pkg/generated/openapi --output-file-base zz_generated.openapi \
        --go-header-file hack/boilerplate/boilerplate.generatego.txt --report-filename /dev/null \
    && version=k8s.io/kubernetes/vendor/k8s.io/component-base/version \
    # No test needs the cloud providers, nor Docker as a runtime.
    && go build -o /usr/local/bin/ -tags providerless,dockerless \
        -ldflags "-s -w -X $version.gitVersion=v1.20.2 -X $version.gitMajor=1 -X $version.gitMinor=20" \
        ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kubelet ./cmd/kube-proxy \
    # The container that holds a pod's network: it only waits.
    && printf 'package main\nimport ("os"; "os/signal"; "syscall")\nfunc main() {\n    signals := make(chan os.Signal, 1)\n    signal.Notify(signals, syscall.SIGTERM)\n    <-signals\n}\n' >/build/pause.go \
    && go build -ldflags '-s -w' -o /usr/local/bin/pause /build/pause.go \
    && cd / && rm -r /build/* /etc/apt/sources.list.d/source.list \
    && apt-get purge --yes --autoremove dpkg-dev \
    && apt-get clean && rm -r /var/lib/apt/lists
