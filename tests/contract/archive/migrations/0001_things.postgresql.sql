-- made 2027-01-01 00:00:00
create table things (
    name text collate "C" not null primary key,
    number bigint not null,
    size double precision,
    good boolean,
    at timestamptz not null,
    seen_at timestamptz,
    note text collate "C",
    free jsonb,
    log_seq bigint not null
);
create index things_number on things (number);
create index things_at on things (at);
create trigger things_keep_newest before update on things for each row execute function archive_keep_newest();
alter table things enable row level security;

create table steps (
    thing text collate "C" not null,
    step bigint not null,
    weight double precision not null,
    text text collate "C" not null,
    primary key (thing, step)
);
create index steps_text on steps (text);
create index steps_weight on steps (weight);
create trigger steps_keep_first before update on steps for each row execute function archive_keep_first();
alter table steps enable row level security;
