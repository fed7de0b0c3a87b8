#!/bin/sh
# Makes an authority of its own and a certificate for a NATS server:
#
#   certificates.sh FOLDER NAME...     names and IPv4 addresses of the server
#
# In the folder: ca.pem for the services (POSTRIDER_NATS_CA); cert.pem and
# key.pem for the server; ca-key.pem, which nobody needs before cert.pem ends,
# after 825 days. What is there is kept.
set -eu
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1
shift
umask 077
mkdir -p "$folder"
cd "$folder"
names=
for name; do
	case $name in
	*[!0-9.]*) names=$names,DNS:$name ;;
	*) names=$names,IP:$name ;;
	esac
done
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
if [ ! -e ca.pem ]; then
	key ca-key.pem
	openssl req -x509 -new -key ca-key.pem -sha256 -days 3650 -subj "/CN=postrider NATS authority" -out ca.pem
fi
if [ ! -e cert.pem ]; then
	key key.pem
	openssl req -new -key key.pem -subj "/CN=$1" -out request.pem
	printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "${names#,}" > extensions
	openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -sha256 -days 825 -extfile extensions -out cert.pem
	rm request.pem extensions
fi
chmod 755 .
chmod 644 ca.pem cert.pem
