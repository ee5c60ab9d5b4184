create table things (
    name text not null primary key,
    number bigint not null,
    size double,
    good boolean,
    at text not null,
    seen_at text,
    note text,
    free text,
    log_seq bigint not null
);
create index things_number on things (number);
create index things_at on things (at);
create trigger things_keep_newest before update on things when new.log_seq < old.log_seq
begin
    select raise(ignore);
end;

create table steps (
    thing text not null,
    step bigint not null,
    weight double not null,
    text text not null,
    primary key (thing, step)
);
create index steps_text on steps (text);
create index steps_weight on steps (weight);
create trigger steps_keep_first before update on steps
begin
    select raise(ignore);
end;
