-- Written by `make migrations` from 0001_nodes of node_registry.
-- made 2026-11-21 10:31:00

-- What each node has, as it announced itself last.
create table nodes (
    node_id text collate "C" not null primary key,
    boot_id text collate "C" not null,
    hostname text collate "C" not null,
    state text collate "C" not null,
    state_reason text collate "C" not null,
    tier text collate "C" not null,
    platform text collate "C" not null,
    gpu_count bigint not null,
    vram_total_mb bigint,
    ram_total_mb bigint,
    labels jsonb not null,
    inventory jsonb not null,
    announced_at timestamptz not null,
    changed_at timestamptz not null,
    log_seq bigint not null
);
create index nodes_changed_at on nodes (changed_at);
create trigger nodes_keep_newest before update on nodes for each row execute function archive_keep_newest();
alter table nodes enable row level security;

-- What happened to nodes. Rows are only ever added.
create table node_events (
    event_id text collate "C" not null primary key,
    node_id text collate "C" not null,
    at timestamptz not null,
    kind text collate "C" not null,
    previous text collate "C",
    state text collate "C",
    reason text collate "C" not null,
    boot_id text collate "C",
    detail jsonb,
    log_seq bigint not null
);
create index node_events_at on node_events (at);
create index node_events_node_id_at on node_events (node_id, at);
create trigger node_events_keep_first before update on node_events for each row execute function archive_keep_first();
alter table node_events enable row level security;

-- Only the service key may use this.
alter table nodes enable row level security;
revoke all on table nodes from anon, authenticated;
grant select, insert, update, delete on table nodes to service_role;
alter table node_events enable row level security;
revoke all on table node_events from anon, authenticated;
grant select, insert, update, delete on table node_events to service_role;
notify pgrst, 'reload schema';
