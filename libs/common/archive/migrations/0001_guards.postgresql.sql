-- made 2026-11-21 10:30:00
-- What the triggers of all services' tables do.

-- A row with a lower log_seq than the stored one is older: keep what is stored, and say nothing.
create function archive_keep_newest() returns trigger language plpgsql set search_path = '' as $$
begin
    if new.log_seq < old.log_seq then
        return null;
    end if;
    return new;
end
$$;
revoke execute on function archive_keep_newest() from public;

-- What was written stays as it was written first.
create function archive_keep_first() returns trigger language plpgsql set search_path = '' as $$
begin
    return null;
end
$$;
revoke execute on function archive_keep_first() from public;

-- Stays empty: asking for it shows that the database answers.
create table archive_probe (
    name text collate "C" not null primary key
);
alter table archive_probe enable row level security;
