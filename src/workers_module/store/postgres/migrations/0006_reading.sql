-- min_code: 6
--
-- Reads that take more than one statement.

-- A piece of the list of jobs in some shown states, in order.
CREATE FUNCTION page_1(p_queue text, p_states int[], p_start bigint, p_limit bigint, p_newest boolean)
RETURNS TABLE (
    n bigint, seq bigint, id text, name bytea, data bytea, opts bytea, priority int, tags text[], attempts int,
    max_attempts int, crashes int, fence int, added bigint, started bigint, lifo boolean, on_crash boolean,
    cancel boolean, worker bytea, parent_queue text, parent_id text, policy smallint, schedule text, dedup text,
    deferred text, progress bytea, reason bytea, trace bytea, result bytea,
    state smallint, due bigint, ended bigint, total bigint
) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_q int := queue_found(p_queue);
    c bigint[] := counts_of(v_q);
    v_skip bigint := greatest(0, p_start);
    v_left bigint := greatest(0, p_limit);
    v_total bigint := 0;
    v_ids text[] := '{}';
    v_some text[];
    v_state int;
BEGIN
    FOREACH v_state IN ARRAY p_states LOOP
        v_total := v_total + c[v_state];
        IF v_skip >= c[v_state] THEN
            v_skip := v_skip - c[v_state];
        ELSIF v_left > 0 THEN
            v_some := listed(v_q, v_state, NULL, NULL, v_left, v_skip, p_newest);
            v_ids := v_ids || v_some;
            v_left := v_left - coalesce(cardinality(v_some), 0);
            v_skip := 0;
        END IF;
    END LOOP;
    RETURN QUERY SELECT j.n, j.seq, j.id, j.name, j.data, j.opts, j.priority, t.tags, j.attempts, j.max_attempts,
            j.crashes, j.fence, j.added, j.started, j.lifo, j.on_crash, j.cancel, j.worker, j.parent_queue,
            j.parent_id, j.policy, j.schedule, j.dedup, j.deferred, j.progress, j.reason, j.trace, j.result,
            j.state, j.due, j.ended, v_total
        FROM (SELECT 1) one LEFT JOIN unnest(v_ids) WITH ORDINALITY u(id, o) ON true
        LEFT JOIN job j ON j.q = v_q AND j.id = u.id
        LEFT JOIN tagset t ON t.id = j.tagset ORDER BY u.o;
END $$;
