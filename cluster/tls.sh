#!/usr/bin/env bash
# Certificates for Ray's TLS, made with openssl on one machine; ca.key never leaves it.
#   cluster/tls.sh ca DIR                 once: DIR/ca.crt and DIR/ca.key
#   cluster/tls.sh node DIR [ADDRESS...]  DIR/tls.crt and DIR/tls.key for 127.0.0.1 and these addresses (default: this host's);
#                                         one pair for all nodes, or one for each. Copy ca.crt, tls.crt and tls.key to the nodes
#   eval "$(cluster/tls.sh env DIR)"      what Ray reads, on each node: for `ray start`, drivers and jobs alike
set -euo pipefail
umask 077

days=${DAYS:-365}
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
action=$1 folder=$2
shift 2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

case $action in
ca)
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$days" -subj "/CN=symoe-ray cluster" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$folder/ca.key" -out "$folder/ca.crt" 2>/dev/null
    ;;
node)
    [ $# -gt 0 ] || read -ra addresses <<<"$(hostname -I)"
    [ $# -eq 0 ] || addresses=("$@")
    names="DNS:$(hostname),DNS:localhost,IP:127.0.0.1"
    for address in "${addresses[@]}"; do names+=",IP:$address"; done
    request=$(mktemp) && trap 'rm -f "$request"' EXIT
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$(hostname)" \
        -keyout "$folder/tls.key" -out "$request" 2>/dev/null
    openssl x509 -req -in "$request" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -days "$days" -set_serial "0x$(openssl rand -hex 16)" \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") \
        -out "$folder/tls.crt" 2>/dev/null
    openssl verify -CAfile "$folder/ca.crt" "$folder/tls.crt" >/dev/null
    ;;
env)
    printf 'export RAY_USE_TLS=1 RAY_TLS_SERVER_CERT=%q RAY_TLS_SERVER_KEY=%q RAY_TLS_CA_CERT=%q\n' \
        "$folder/tls.crt" "$folder/tls.key" "$folder/ca.crt"
    ;;
*) usage ;;
esac
