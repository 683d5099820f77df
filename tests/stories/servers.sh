#!/bin/sh
# Real database servers in a Debian guest, for `servers.rs`: servers.sh VERB [SERVER].
#
# Each transaction of a load moves one from the first row to the second, so that the sum stays 0, and counts
# itself. When its server has acknowledged it, its number is noted on another file system, in /run/acks/SERVER.
# Between two of them it rests: emulation is slow. Redis is there twice: as Debian ships it it dumps now and then, and one has an append-only file.

psql() {
    setpriv --reuid postgres --regid postgres --init-groups psql -XqAt -v ON_ERROR_STOP=1 "$@"
}

sql() {
    mariadb --batch --skip-column-names --unbuffered "$@"
}

redis() {
    case $1 in
        redis-dumping) redis-cli ;;
        redis-appending) redis-cli -p 6380 ;;
    esac
}

# The text again and again, with the numbers from 1 on in the place of @.
numbered() {
    awk -v text="$1" 'BEGIN { for (i = 1; ; i++) { line = text; gsub("@", i, line); print line } }'
}

move='UPDATE pair SET v = v - 1 WHERE id = 1; UPDATE pair SET v = v + 1 WHERE id = 2; INSERT INTO log VALUES (@);'

case "$*" in
    'data '*)
        # What Debian's packages made, on a disk of its own.
        mkfs.ext4 -q "$2" && mkdir /data && mount "$2" /data && cd /var/lib &&
            cp -a --sparse=always postgresql mysql redis /data && install -d -o redis /data/redis-appending
        ;;
    start)
        for folder in postgresql mysql redis; do
            mount --bind /data/$folder /var/lib/$folder || exit 1
        done
        # Debian's own look at all tables after each start takes its time under emulation.
        mkdir -p /run/systemd/system/mariadb.service.d
        printf '[Service]\nExecStartPost=\n' >/run/systemd/system/mariadb.service.d/plain.conf
        systemctl daemon-reload && systemctl start postgresql mariadb redis-server || exit 1
        systemd-run --quiet --unit redis-appending --property User=redis \
            redis-server --port 6380 --dir /data/redis-appending --appendonly yes --save ''
        ;;
    is-up)
        pg_isready --quiet && mariadb-admin --silent ping || exit 1
        for port in 6379 6380; do
            redis-cli -p $port INFO | grep -q '^loading:0' || exit 1
        done
        ;;

    'prepare postgresql')
        echo 'CREATE TABLE pair (id int PRIMARY KEY, v int); INSERT INTO pair VALUES (1, 0), (2, 0);
              CREATE TABLE log (n int PRIMARY KEY);' | psql
        ;;
    'load postgresql')
        numbered "BEGIN; $move COMMIT; SELECT 'ack @'; SELECT pg_sleep(0.05);" | psql
        ;;
    'held postgresql')
        psql -F ' ' -c 'SELECT (SELECT count(*) FROM log), (SELECT max(n) FROM log), (SELECT sum(v) FROM pair)'
        ;;
    'check postgresql')
        setpriv --reuid postgres --regid postgres --init-groups \
            /usr/lib/postgresql/*/bin/pg_amcheck --all --install-missing
        ;;

    'prepare mariadb')
        # MyISAM: without a lock, such a table is torn, and one that is in use is marked as damaged.
        echo 'CREATE DATABASE app; USE app; CREATE TABLE pair (id int PRIMARY KEY, v int) ENGINE=InnoDB;
              INSERT INTO pair VALUES (1, 0), (2, 0); CREATE TABLE log (n int PRIMARY KEY) ENGINE=InnoDB;
              CREATE TABLE plain (n int PRIMARY KEY) ENGINE=MyISAM;' | sql
        ;;
    'load mariadb')
        numbered "BEGIN; $move COMMIT; INSERT INTO plain VALUES (@); SELECT 'ack @'; DO SLEEP(0.05);" | sql app
        ;;
    'held mariadb')
        echo 'SELECT (SELECT count(*) FROM log), (SELECT max(n) FROM plain), (SELECT sum(v) FROM pair);' |
            sql app | tr '\t' ' '
        ;;
    'check mariadb')
        mariadb-check --all-databases | grep -v ' OK$'
        ;;

    'prepare redis-'*)
        echo 'MSET first 0 second 0 log 0 last 0' | redis "$2" >/dev/null
        ;;
    'load redis-'*)
        numbered 'MULTI\nDECR first\nINCR second\nINCR log\nSET last @\nEXEC\nECHO "ack @"\nBLPOP none 0.05' | redis "$2"
        ;;
    'held redis-'*)
        echo 'MGET log last first second' | redis "$2" |
            { read -r log; read -r last; read -r first; read -r second; echo "$log $last $((first + second))"; }
        ;;
    'check redis-'*)
        # It would not be up if it did not load.
        ;;
    *)
        echo "servers.sh knows no $*" >&2
        exit 2
        ;;
esac
