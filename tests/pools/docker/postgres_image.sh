#!/bin/sh
# An image with this machine's PostgreSQL that is configured as the public one is, for where no registry answers.
#
#   tests/pools/docker/postgres_image.sh NAME
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1) version=$(basename "$(dirname "$bin")")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cd "$root"
mkdir -p bin etc lib64 tmp usr/lib/postgresql usr/share/postgresql var/run/postgresql var/lib/postgresql/data
cp -a "/usr/lib/postgresql/$version" usr/lib/postgresql/
cp -a "/usr/share/postgresql/$version" usr/share/postgresql/
cp -a /usr/share/zoneinfo usr/share/
for tool in sh cat rm; do cp -L "$(command -v $tool)" bin/; done
ldd bin/* "$bin"/* "/usr/lib/postgresql/$version/lib/"*.so 2>/dev/null \
  | grep -oE '(=> |^\s+)/\S+ \(0x' | grep -oE '/\S+' | sort -u | while read -r library; do
    case $library in
      */ld-*) cp -L "$library" ".$library" ;;   # the loader's own path is fixed in every program
      *) cp -L "$library" usr/lib/ ;;
    esac
  done
echo 'postgres:x:999:999::/var/lib/postgresql:/bin/sh' >etc/passwd
echo 'postgres:x:999:' >etc/group
cat >bin/docker-entrypoint <<'END'
#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth scram-sha-256 --encoding UTF8 --no-locale
  rm /tmp/password
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl start --wait --options "-c listen_addresses="
  PGPASSWORD=$POSTGRES_PASSWORD createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl stop
fi
exec postgres -c listen_addresses=*
END
chmod 755 bin/docker-entrypoint
chmod 1777 tmp
chown -R 999:999 var
tar -c . | docker import --change 'USER 999:999' --change "ENV PATH=$bin:/bin PGDATA=/var/lib/postgresql/data" \
  --change 'ENTRYPOINT ["docker-entrypoint"]' - "$1" >/dev/null
