-- What each node has, as it announced itself last.
create table nodes (
    node_id text not null primary key,
    boot_id text not null,
    hostname text not null,
    state text not null,
    state_reason text not null,
    tier text not null,
    platform text not null,
    gpu_count bigint not null,
    vram_total_mb bigint,
    ram_total_mb bigint,
    labels text not null,
    inventory text not null,
    announced_at text not null,
    changed_at text not null,
    log_seq bigint not null
);
create index nodes_changed_at on nodes (changed_at);
create trigger nodes_keep_newest before update on nodes when new.log_seq < old.log_seq
begin
    select raise(ignore);
end;

-- What happened to nodes. Rows are only ever added.
create table node_events (
    event_id text not null primary key,
    node_id text not null,
    at text not null,
    kind text not null,
    previous text,
    state text,
    reason text not null,
    boot_id text,
    detail text,
    log_seq bigint not null
);
create index node_events_at on node_events (at);
create index node_events_node_id_at on node_events (node_id, at);
create trigger node_events_keep_first before update on node_events
begin
    select raise(ignore);
end;
