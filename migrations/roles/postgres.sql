-- Roles for everything that works on this database: run it there as an administrator, before `cdc migrate`, or again at any time.
-- The owner then runs `cdc migrate`, which gives the others their rights on its tables, each time.
-- No role has a password yet: \password sluicebox_daemon in psql, or another way to log in that pg_hba.conf names.
DO $$
DECLARE
    role record;
BEGIN
    FOR role IN
        SELECT * FROM (VALUES
            ('sluicebox_owner',       'LOGIN'),              -- cdc migrate: owns the tables
            ('sluicebox_api',         'LOGIN'),              -- the service that writes events: inserts into the outbox, reads nothing there
            ('sluicebox_daemon',      'LOGIN'),              -- DATABASE_URL of cdc run and of operators
            ('sluicebox_replication', 'LOGIN REPLICATION')   -- REPLICATION_DATABASE_URL: it can read all that is published, and take a base backup
        ) AS wanted (name, attributes)
        WHERE name NOT IN (SELECT rolname FROM pg_roles)
    LOOP
        EXECUTE format('CREATE ROLE %I %s', role.name, role.attributes);
    END LOOP;

    -- To end the session of a daemon that hangs.
    IF NOT pg_has_role('sluicebox_daemon', 'sluicebox_replication', 'USAGE') THEN
        IF current_setting('server_version_num')::int >= 160000 THEN -- its sessions, and not to become it: it could give itself a password
            EXECUTE 'GRANT sluicebox_replication TO sluicebox_daemon WITH INHERIT TRUE, SET FALSE';
        ELSE
            GRANT sluicebox_replication TO sluicebox_daemon;
        END IF;
    END IF;
    -- Who holds up the slot: for `cdc doctor` and the status page.
    IF NOT pg_has_role('sluicebox_daemon', 'pg_read_all_stats', 'USAGE') THEN
        GRANT pg_read_all_stats TO sluicebox_daemon;
    END IF;

    -- Schema sluicebox, the publication, and the tables in public.
    EXECUTE format('GRANT CREATE ON DATABASE %I TO sluicebox_owner', current_database());
    GRANT USAGE, CREATE ON SCHEMA public TO sluicebox_owner;
END
$$;
