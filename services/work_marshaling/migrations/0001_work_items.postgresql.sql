-- made 2026-11-21 10:32:00

-- Finished work, one row per item. `result` and `payload` are there when they are small.
create table work_items (
    work_id text collate "C" not null primary key,
    sequence bigint not null,
    status text collate "C" not null,
    work_type text collate "C" not null,
    model_name text collate "C",
    node_id text collate "C",
    submitter text collate "C",
    retry_of text collate "C",
    priority bigint not null,
    labels jsonb not null,
    submitted_at timestamptz not null,
    ended_at timestamptz not null,
    max_attempts bigint not null,
    attempts jsonb not null,
    error jsonb,
    result jsonb,
    result_bytes bigint not null,
    item jsonb not null,
    payload text collate "C",
    payload_bytes bigint not null,
    digest text collate "C" not null,
    log_seq bigint not null
);
create index work_items_ended_at on work_items (ended_at);
create index work_items_submitted_at on work_items (submitted_at);
create index work_items_sequence on work_items (sequence);
create index work_items_status_submitted_at on work_items (status, submitted_at);
create index work_items_node_id_submitted_at on work_items (node_id, submitted_at);
create trigger work_items_keep_newest before update on work_items for each row execute function archive_keep_newest();
alter table work_items enable row level security;
