-- min_code: 5
--
-- Changes by people, faces and schedules.

-- Patches, one element each. Results: 0 ok, 1 missing, 2 lease lost, 3 wrong state. p_lines holds the log lines of all
-- patches, p_line_of the patch each belongs to.
CREATE FUNCTION edit_1(p_queue text, p_ids text[], p_progress bytea[], p_data bytea[], p_lines bytea[], p_line_of int[],
    p_keeps int[], p_clear boolean[], p_priority int[], p_delay bigint[], p_cancel boolean[], p_detach boolean[],
    p_tokens text[], p_fences int[], p_instant bigint)
RETURNS TABLE (results smallint[], news text[]) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off
SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_q int := queue_found(p_queue);
    v_results smallint[] := '{}';
    v_logged int;
    v_more int;
    j job;
BEGIN
    PERFORM news_begun();
    FOR k IN 1 .. cardinality(p_ids) LOOP
        SELECT * INTO j FROM job WHERE q = v_q AND id = p_ids[k] FOR UPDATE;
        IF NOT FOUND THEN
            v_results[k] := 1;
            CONTINUE;
        ELSIF p_tokens[k] IS NOT NULL AND NOT is_held(j, p_tokens[k], p_fences[k], v_now) THEN
            v_results[k] := 2;
            CONTINUE;
        ELSIF (p_delay[k] IS NOT NULL AND j.state <> 2) OR (p_cancel[k] AND j.state <> 3) THEN
            v_results[k] := 3;
            CONTINUE;
        END IF;
        v_results[k] := 0;
        IF p_progress[k] IS NOT NULL THEN
            UPDATE job SET progress = p_progress[k] WHERE q = v_q AND id = j.id;
            PERFORM tell(v_q, 'progress', j.id, p_progress[k], NULL);
        END IF;
        IF p_data[k] IS NOT NULL THEN
            UPDATE job SET data = p_data[k] WHERE q = v_q AND id = j.id;
        END IF;
        SELECT count(*) INTO v_more FROM unnest(p_line_of) o WHERE o = k;
        IF p_clear[k] OR v_more > 0 OR p_keeps[k] < 1000 THEN
            v_logged := j.logged;
            IF p_clear[k] THEN
                DELETE FROM log WHERE n = j.n;
                v_logged := 0;
            END IF;
            INSERT INTO log (n, i, line)
            SELECT j.n, v_logged + row_number() OVER (ORDER BY u.o), u.line
            FROM unnest(p_lines, p_line_of) WITH ORDINALITY u(line, at, o) WHERE u.at = k;
            v_logged := v_logged + v_more;
            IF v_logged > p_keeps[k] THEN
                DELETE FROM log WHERE log.n = j.n AND log.i <= v_logged - p_keeps[k];
            END IF;
            UPDATE job SET logged = v_logged WHERE q = v_q AND id = j.id;
        END IF;
        IF p_priority[k] IS NOT NULL THEN
            UPDATE job SET priority = p_priority[k] WHERE q = v_q AND id = j.id;
            IF j.state = 1 AND j.priority <> p_priority[k] THEN
                UPDATE job SET seq = CASE WHEN j.lifo THEN ahead() ELSE behind() END WHERE q = v_q AND id = j.id;
                PERFORM recounted(v_q, shown(1, j.priority), shown(1, p_priority[k]));
            END IF;
        END IF;
        IF p_delay[k] IS NOT NULL THEN
            UPDATE job SET due = v_now + p_delay[k], seq = behind() WHERE q = v_q AND id = j.id;
            PERFORM tell(v_q, 'delayed', j.id, raw((v_now + p_delay[k])::text), NULL);
        END IF;
        IF p_cancel[k] THEN
            UPDATE job SET cancel = true WHERE q = v_q AND id = j.id;
        END IF;
        IF p_detach[k] AND j.parent_queue IS NOT NULL THEN
            UPDATE job SET parent_queue = NULL, parent_id = NULL WHERE q = v_q AND id = j.id;
            PERFORM child_gone(p_queue, j, v_now);
        END IF;
    END LOOP;
    RETURN QUERY SELECT v_results, news();
END $$;

-- Whether an action takes a job in its state: 0 remove, 1 retry, 2 promote, 3 fail.
CREATE FUNCTION movable(j job, p_action int, p_hard boolean, p_children boolean) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN CASE p_action
        WHEN 0 THEN j.state <> 3 AND NOT is_current(j) AND (p_hard OR NOT p_children OR j.pending = 0
            OR NOT EXISTS (SELECT 1 FROM family_of(j) f WHERE f.state = 3))
        WHEN 1 THEN j.state IN (4, 5)
        WHEN 2 THEN j.state = 2
        ELSE j.state NOT IN (3, 4, 5)
    END;
END $$;

-- The jobs of a shown state (1 to 7) in their order, from an offset on: ids alone.
CREATE FUNCTION listed(p_q int, p_shown int, p_older bigint, p_names bytea[], p_limit bigint, p_skip bigint,
    p_newest boolean DEFAULT false)
RETURNS text[] LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_state int := CASE WHEN p_shown = 7 THEN 1 ELSE p_shown END;
    v_where text := format('q = %s AND state = %s', p_q, v_state);
    v_order text := CASE p_shown WHEN 2 THEN 'due, seq' WHEN 4 THEN 'ended, seq' WHEN 5 THEN 'ended, seq' ELSE 'seq' END;
    v_ids text[] := '{}';
    v_some text[];
    v_set int;
BEGIN
    IF p_newest THEN
        v_order := replace(v_order, ',', ' DESC,') || ' DESC';
    END IF;
    IF p_older IS NOT NULL THEN
        v_where := v_where || ' AND coalesce(ended, started, added) < $3';
    END IF;
    IF p_names IS NOT NULL THEN
        v_where := v_where || ' AND name = ANY ($4)';
    END IF;
    IF v_state <> 1 THEN
        EXECUTE format('SELECT ARRAY(SELECT id FROM job WHERE %s ORDER BY %s LIMIT $1 OFFSET $2)', v_where, v_order)
        INTO v_ids USING p_limit, p_skip, p_older, p_names;
        RETURN v_ids;
    END IF;
    v_where := v_where || CASE WHEN p_shown = 7 THEN ' AND priority > 0' ELSE ' AND priority = 0' END;
    FOR v_set IN SELECT s.id FROM (SELECT 0 AS id, '{}'::text[] AS tags UNION ALL SELECT id, tags FROM tagset WHERE q = p_q) s
        ORDER BY CASE WHEN p_newest THEN NULL ELSE s.tags END, s.tags DESC
    LOOP
        EXECUTE format('SELECT ARRAY(SELECT id FROM job WHERE %s AND tagset = %s ORDER BY %s LIMIT $1)', v_where, v_set,
            CASE WHEN p_newest THEN 'priority DESC, seq DESC' ELSE 'priority, seq' END)
        INTO v_some USING p_limit + p_skip, p_skip, p_older, p_names;
        v_ids := v_ids || v_some;
        EXIT WHEN cardinality(v_ids) >= p_limit + p_skip;
    END LOOP;
    RETURN v_ids[p_skip + 1 : p_skip + p_limit];
END $$;

-- Rows out: one. refused is null, 'missing', or the state of the single job that may not be moved. hint: ready jobs.
CREATE FUNCTION move_1(p_queue text, p_ids text[], p_states int[], p_older bigint, p_limit bigint, p_names bytea[],
    p_action int, p_children boolean, p_hard boolean, p_reset boolean, p_reason bytea, p_trace bytea, p_instant bigint)
RETURNS TABLE (moved text[], refused text, hint int, tagged boolean, news text[]) LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_q int := queue_found(p_queue);
    v_ids text[] := '{}';
    v_some text[];
    v_skip bigint;
    v_moved text[] := '{}';
    v_events told[] := '{}';
    v_hint int := 0;
    v_prev text;
    v_id text;
    d bigint[] := zeros();
    j job;
BEGIN
    PERFORM news_begun();
    IF p_ids IS NOT NULL THEN
        v_ids := ARRAY(SELECT s.id FROM (
            SELECT min(u.o) AS o, job.id FROM unnest(p_ids) WITH ORDINALITY u(id, o)
            JOIN job ON job.q = v_q AND job.id = u.id GROUP BY job.id) s ORDER BY s.o LIMIT p_limit);
        IF cardinality(p_ids) = 1 THEN
            SELECT * INTO j FROM job WHERE q = v_q AND id = v_ids[1] FOR UPDATE;
            IF NOT FOUND THEN
                RETURN QUERY SELECT '{}'::text[], 'missing', 0, false, '{}'::text[];
                RETURN;
            ELSIF NOT movable(j, p_action, p_hard, p_children) THEN
                RETURN QUERY SELECT '{}'::text[], shown(j.state, j.priority)::text, 0, false, '{}'::text[];
                RETURN;
            END IF;
        END IF;
    ELSIF v_q IS NOT NULL THEN
        FOR i IN 1 .. cardinality(p_states) LOOP
            v_skip := 0;
            WHILE cardinality(v_ids) < p_limit LOOP
                -- Some that are found may not be moved, so that it takes another look behind them.
                v_some := listed(v_q, p_states[i], p_older, p_names, p_limit, v_skip);
                EXIT WHEN coalesce(cardinality(v_some), 0) = 0;
                v_skip := v_skip + cardinality(v_some);
                v_ids := (v_ids || ARRAY(SELECT job.id FROM unnest(v_some) WITH ORDINALITY u(id, o)
                    JOIN job ON job.q = v_q AND job.id = u.id
                    WHERE movable(job, p_action, p_hard, p_children) ORDER BY u.o))[1 : p_limit];
                EXIT WHEN cardinality(v_some) < p_limit;
            END LOOP;
        END LOOP;
    END IF;
    IF p_action = 0 AND p_hard AND NOT EXISTS (
        SELECT 1 FROM job WHERE q = v_q AND id = ANY (v_ids) AND (parent_queue IS NOT NULL OR children > 0)) THEN
        -- Drain and clean: nothing hangs together, so all at once.
        WITH gone AS (
            DELETE FROM job WHERE q = v_q AND id = ANY (v_ids) AND state <> 3 AND movable(job, 0, true, p_children)
            RETURNING n, id, state, priority, dedup, logged
        ), keys AS (
            DELETE FROM dedup USING gone WHERE dedup.q = v_q AND dedup.key = gone.dedup AND dedup.id = gone.id
        ), lines AS (
            DELETE FROM log USING gone WHERE log.n = gone.n AND gone.logged > 0
        )
        SELECT array_agg(gone.id ORDER BY u.o), ARRAY[
            -count(*) FILTER (WHERE shown(state, priority) = 1), -count(*) FILTER (WHERE state = 2), 0,
            -count(*) FILTER (WHERE state = 4), -count(*) FILTER (WHERE state = 5), -count(*) FILTER (WHERE state = 6),
            -count(*) FILTER (WHERE shown(state, priority) = 7)]
        INTO v_moved, d FROM gone JOIN unnest(v_ids) WITH ORDINALITY u(id, o) ON u.id = gone.id;
        v_moved := coalesce(v_moved, '{}');
    ELSE
        FOREACH v_id IN ARRAY v_ids LOOP
            -- An earlier one may have taken this one along, or changed it.
            SELECT * INTO j FROM job WHERE q = v_q AND id = v_id FOR UPDATE;
            CONTINUE WHEN NOT FOUND OR NOT movable(j, p_action, p_hard, p_children);
            v_moved := v_moved || j.id;
            v_prev := (ARRAY['waiting', 'delayed', 'active', 'completed', 'failed', 'waiting-children', 'prioritized'])[
                shown(j.state, j.priority)];
            IF p_action = 0 THEN
                IF p_hard THEN
                    PERFORM removed_hard(p_queue, j, v_now);
                ELSE
                    PERFORM removed_soft(p_queue, j, p_children, v_now);
                END IF;
                CONTINUE;
            END IF;
            d[shown(j.state, j.priority)] := d[shown(j.state, j.priority)] - 1;
            IF p_action = 3 THEN
                PERFORM written(v_q, v_events);
                v_events := '{}';
                IF j.dedup IS NOT NULL THEN
                    PERFORM key_freed(j, v_now);
                END IF;
                PERFORM child_failed(p_queue, j, p_reason, v_now);
                UPDATE job SET state = 5, ended = v_now, seq = behind(), due = NULL, deferred = NULL, reason = p_reason,
                    trace = coalesce(p_trace, trace) WHERE q = v_q AND id = j.id;
                d[5] := d[5] + 1;
                v_events := v_events || ROW('failed', j.id, p_reason, v_prev)::told;
                IF j.attempts >= j.max_attempts THEN
                    v_events := v_events || ROW('retries-exhausted', j.id, raw(j.attempts::text), NULL)::told;
                END IF;
                CONTINUE;
            END IF;
            d[shown(1, j.priority)] := d[shown(1, j.priority)] + 1;
            v_hint := v_hint + 1;
            IF p_action = 2 THEN
                UPDATE job SET state = 1, seq = behind(), due = NULL WHERE q = v_q AND id = j.id;
            ELSE
                UPDATE job SET state = 1, seq = CASE WHEN j.lifo AND j.priority = 0 THEN ahead() ELSE behind() END,
                    ended = NULL, started = NULL, attempts = CASE WHEN p_reset THEN 0 ELSE j.attempts END,
                    reason = CASE WHEN j.state = 5 THEN NULL ELSE j.reason END,
                    result = CASE WHEN j.state = 4 THEN NULL ELSE j.result END
                WHERE q = v_q AND id = j.id;
                PERFORM pending_again(p_queue, j);
            END IF;
            v_events := v_events || ROW('waiting', j.id, NULL, v_prev)::told;
        END LOOP;
    END IF;
    IF cardinality(v_moved) > 0 AND p_action = 0 AND p_hard AND p_ids IS NULL AND p_older IS NOT NULL THEN
        v_events := v_events || ROW('cleaned', NULL, raw(cardinality(v_moved)::text), NULL)::told;
    END IF;
    IF v_q IS NOT NULL AND d <> zeros() THEN
        PERFORM counted(v_q, d);
    END IF;
    IF v_q IS NOT NULL THEN
        PERFORM written(v_q, v_events);
    END IF;
    RETURN QUERY SELECT v_moved, NULL::text, v_hint, EXISTS (SELECT 1 FROM tagset WHERE q = v_q), news();
END $$;

-- Put a retried child back among its parent's pending ones. A parent already released is not called back.
CREATE FUNCTION pending_again(p_queue text, c job) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    p job := living_parent(c);
BEGIN
    IF p.n IS NOT NULL AND EXISTS (SELECT 1 FROM dep WHERE parent = p.n AND queue = p_queue AND id = c.id) THEN
        PERFORM dep_put(p, p_queue, c.id, 0, NULL, NULL);
    END IF;
END $$;

-- Change the settings that are marked in p_set, and return them all.
CREATE FUNCTION configure_1(p_queue text, p_paused boolean, p_concurrency int, p_rate_max bigint, p_rate_ms bigint,
    p_event_cap int, p_limit_for bigint, p_free text, p_set_concurrency boolean, p_set_rate boolean, p_instant bigint)
RETURNS TABLE (paused boolean, concurrency int, rate_max bigint, rate_ms bigint, event_cap int, limited_until bigint,
    hint int) LANGUAGE plpgsql SET search_path FROM CURRENT SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_hint int := 0;
    c bigint[];
    w queue;
BEGIN
    PERFORM news_begun();
    PERFORM queue_made(p_queue);
    SELECT * INTO w FROM queue WHERE name = p_queue FOR UPDATE;
    c := counts_of(w.q);
    IF p_set_concurrency OR p_set_rate OR p_limit_for IS NOT NULL THEN
        v_hint := c[1] + c[7];
    END IF;
    UPDATE queue SET
        paused = coalesce(p_paused, w.paused),
        concurrency = CASE WHEN p_set_concurrency THEN p_concurrency ELSE w.concurrency END,
        rate_max = CASE WHEN p_set_rate THEN p_rate_max ELSE w.rate_max END,
        rate_ms = CASE WHEN p_set_rate THEN p_rate_ms ELSE w.rate_ms END,
        event_cap = coalesce(p_event_cap, w.event_cap),
        rate_used = CASE WHEN p_limit_for IS NULL THEN w.rate_used ELSE 9007199254740991 END,
        rate_until = coalesce(v_now + p_limit_for, w.rate_until)
    WHERE q = w.q;
    IF p_paused <> w.paused THEN
        PERFORM written(w.q, ARRAY[ROW(CASE WHEN p_paused THEN 'paused' ELSE 'resumed' END, NULL, NULL, NULL)::told]);
        IF NOT p_paused THEN
            v_hint := CASE WHEN c[1] + c[7] > 0 THEN c[1] + c[7] WHEN c[2] > 0 THEN 1000000 ELSE 0 END;
        END IF;
    END IF;
    IF p_event_cap IS NOT NULL THEN
        PERFORM events_trimmed(w.q);
    END IF;
    IF p_free IS NOT NULL THEN
        DELETE FROM dedup WHERE q = w.q AND key = p_free;
    END IF;
    RETURN QUERY SELECT x.paused, x.concurrency, x.rate_max, x.rate_ms, x.event_cap,
        CASE WHEN x.rate_used >= 9007199254740991 AND x.rate_until > v_now THEN x.rate_until END, v_hint
        FROM queue x WHERE x.q = w.q;
END $$;

-- Delete a queue's schedules and up to p_limit jobs; active is the first active job that forbids it.
CREATE FUNCTION obliterate_1(p_queue text, p_force boolean, p_limit bigint, p_instant bigint)
RETURNS TABLE (empty boolean, active text, news text[]) LANGUAGE plpgsql SET search_path FROM CURRENT
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_left bigint := greatest(1, p_limit);
    v_active text;
    v_some text[];
    v_id text;
    w queue;
    j job;
BEGIN
    PERFORM news_begun();
    SELECT * INTO w FROM queue WHERE name = p_queue FOR UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT true, NULL::text, '{}'::text[];
        RETURN;
    END IF;
    SELECT id INTO v_active FROM job WHERE q = w.q AND state = 3 ORDER BY seq LIMIT 1;
    IF v_active IS NOT NULL AND NOT p_force THEN
        RETURN QUERY SELECT false, v_active, '{}'::text[];
        RETURN;
    END IF;
    DELETE FROM schedule WHERE q = w.q;
    FOR v_state IN 1 .. 7 LOOP
        EXIT WHEN v_left <= 0;
        v_some := listed(w.q, v_state, NULL, NULL, v_left, 0);
        v_left := v_left - coalesce(cardinality(v_some), 0);
        FOREACH v_id IN ARRAY coalesce(v_some, '{}') LOOP
            SELECT * INTO j FROM job WHERE q = w.q AND id = v_id FOR UPDATE;
            IF FOUND THEN
                PERFORM removed_hard(p_queue, j, v_now);
            END IF;
        END LOOP;
    END LOOP;
    IF EXISTS (SELECT 1 FROM generate_series(1, 7) s WHERE cardinality(listed(w.q, s, NULL, NULL, 1, 0)) > 0) THEN
        RETURN QUERY SELECT false, NULL::text, news();
        RETURN;
    END IF;
    DELETE FROM dedup WHERE q = w.q;
    DELETE FROM metric WHERE q = w.q;
    -- A number beyond all events: who followed this queue is told that there is a gap.
    UPDATE upkeep SET swept = -1, trimmed = nextval(w.events) WHERE q = w.q;
    DELETE FROM event WHERE q = w.q;
    PERFORM setval(w.ids, 1, false);
    UPDATE queue SET gone = true, paused = false, concurrency = NULL, rate_max = NULL, rate_ms = NULL, rate_used = 0,
        rate_until = 0, event_cap = DEFAULT WHERE q = w.q;
    RETURN QUERY SELECT true, NULL::text, news();
END $$;

CREATE FUNCTION publish_1(p_queue text, p_kinds text[], p_ids text[], p_fields bytea[]) RETURNS void LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    v_q int := queue_found(p_queue);
BEGIN
    PERFORM news_begun();
    IF v_q IS NULL THEN
        -- A stream of events alone is no queue that is listed.
        v_q := queue_made(p_queue);
        UPDATE queue SET gone = true WHERE q = v_q;
    END IF;
    -- This b tells that a holds the fields.
    PERFORM written(v_q, ARRAY(SELECT ROW(u.kind, u.id, u.fields, E'\x1f')::told
        FROM unnest(p_kinds, p_ids, p_fields) WITH ORDINALITY u(kind, id, fields, o) ORDER BY u.o));
END $$;

-- --- schedules --------------------------------------------------------------------------------------------------------

-- Store the job of a slot; false when it is there already.
CREATE FUNCTION slot_stored(p_q int, p_id text, p_slot bigint, s spec, p_now bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    s.id := 'repeat:' || p_id || ':' || p_slot;
    s.due := p_slot;
    s.schedule := p_id;
    IF placed(p_q, nextval('place'), s, false, p_now) IS NULL THEN
        PERFORM tell(p_q, 'duplicated', s.id, NULL, NULL);
        RETURN false;
    END IF;
    RETURN true;
END $$;

-- One change: p_kind 0 put, 1 fire, 2 drop.
CREATE FUNCTION rescheduled(p_queue text, p_kind int, p_id text, p_slot bigint, p_from bigint, p_flag boolean, p_body text,
    s spec, p_now bigint) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_q int;
    v_count int := 0;
    v_limit int;
    h schedule;
    c job;
BEGIN
    v_q := CASE WHEN p_kind = 0 THEN queue_made(p_queue) ELSE queue_found(p_queue) END;
    IF v_q IS NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.schedule.' || p_id, v_q));
    SELECT * INTO h FROM schedule WHERE q = v_q AND id = p_id FOR UPDATE;
    IF h.n IS NOT NULL THEN
        SELECT * INTO c FROM job WHERE q = v_q AND id = 'repeat:' || p_id || ':' || h.slot FOR UPDATE;
        v_count := h.count;
    END IF;
    IF p_kind = 0 THEN
        IF h.n IS NOT NULL THEN
            IF h.body = p_body AND h.paused = p_flag THEN
                RETURN false;
            END IF;
            IF c.state IN (1, 2) THEN
                PERFORM removed_hard(p_queue, c, p_now);
                v_count := v_count - 1;
            END IF;
        END IF;
        IF NOT p_flag AND slot_stored(v_q, p_id, p_slot, s, p_now) THEN
            v_count := v_count + 1;
        END IF;
        INSERT INTO schedule (q, id, slot, count, paused, body) VALUES (v_q, p_id, p_slot, v_count, p_flag, p_body)
        ON CONFLICT (q, id) DO UPDATE SET slot = excluded.slot, count = excluded.count, paused = excluded.paused,
            body = excluded.body;
        RETURN true;
    END IF;
    IF h.n IS NULL THEN
        RETURN false;
    END IF;
    IF p_kind = 1 THEN
        IF h.paused OR h.slot <> p_from OR p_slot <= h.slot OR (p_flag AND c.state IS DISTINCT FROM 2) THEN
            RETURN false;
        END IF;
        v_count := v_count - p_flag::int;
        v_limit := (h.body::json ->> 'limit')::int;
        IF v_count >= v_limit THEN
            RETURN false;
        END IF;
        IF p_flag THEN
            PERFORM removed_hard(p_queue, c, p_now);
        END IF;
        IF slot_stored(v_q, p_id, p_slot, s, p_now) THEN
            v_count := v_count + 1;
        END IF;
        UPDATE schedule SET slot = p_slot, count = v_count WHERE n = h.n;
        RETURN true;
    END IF;
    DELETE FROM schedule WHERE n = h.n;
    IF c.state = 2 THEN
        PERFORM removed_soft(p_queue, c, true, p_now);
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION schedule_1(p_queue text, p_kinds smallint[], p_ids text[], p_slots bigint[], p_froms bigint[],
    p_flags boolean[], p_bodies text[], p_names bytea[], p_data bytea[], p_opts bytea[], p_priority int[],
    p_lifo boolean[], p_stamp bigint[], p_max int[], p_tags text[], p_on_crash boolean[],
    p_policy smallint[], p_key text[], p_instant bigint)
RETURNS TABLE (done boolean[], news text[]) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_done boolean[] := '{}';
BEGIN
    PERFORM news_begun();
    FOR i IN 1 .. cardinality(p_kinds) LOOP
        v_done[i] := rescheduled(p_queue, p_kinds[i], p_ids[i], p_slots[i], p_froms[i], p_flags[i], p_bodies[i],
            (NULL, p_names[i], p_data[i], p_opts[i], p_priority[i], p_lifo[i], p_stamp[i], NULL, 0, p_max[i],
            string_to_array(p_tags[i], E'\x1f'), p_on_crash[i], p_policy[i], NULL, NULL, p_key[i],
                NULL)::spec, v_now);
    END LOOP;
    RETURN QUERY SELECT v_done, news();
END $$;

-- --- locks and workers ------------------------------------------------------------------------------------------------

CREATE FUNCTION lease_1(p_name text, p_owner text, p_ttl bigint, p_fence bigint, p_instant bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_held boolean;
    v_new bigint;
    k lock;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.lock.' || p_name, 0));
    SELECT * INTO k FROM lock WHERE name = p_name FOR UPDATE;
    v_held := coalesce(k.until > v_now, false);
    IF v_held AND (k.owner <> p_owner OR k.fence <> coalesce(p_fence, k.fence)) THEN
        RETURN NULL;
    END IF;
    IF v_held THEN
        IF p_ttl <= 0 THEN
            DELETE FROM lock WHERE name = p_name;
        ELSE
            UPDATE lock SET until = v_now + p_ttl WHERE name = p_name;
        END IF;
        RETURN k.fence;
    END IF;
    IF p_ttl <= 0 OR p_fence IS NOT NULL THEN
        RETURN NULL;
    END IF;
    v_new := nextval('fence');
    INSERT INTO lock (name, owner, fence, until) VALUES (p_name, p_owner, v_new, v_now + p_ttl)
    ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, fence = excluded.fence, until = excluded.until;
    RETURN v_new;
END $$;

-- A sign of life (p_body given; p_ttl 0 says goodbye), or an order (p_order). Returns the order left for the worker.
CREATE FUNCTION worker_1(p_id text, p_ttl bigint, p_body text, p_order text, p_instant bigint) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_order text;
BEGIN
    IF p_order IS NOT NULL THEN
        UPDATE worker SET orders = p_order WHERE id = p_id;
        RETURN NULL;
    END IF;
    DELETE FROM worker WHERE id IN (SELECT id FROM worker WHERE until <= v_now FOR UPDATE SKIP LOCKED);
    SELECT orders INTO v_order FROM worker WHERE id = p_id FOR UPDATE;
    IF p_ttl <= 0 THEN
        DELETE FROM worker WHERE id = p_id;
    ELSE
        INSERT INTO worker (id, until, seen, body) VALUES (p_id, v_now + p_ttl, v_now, p_body)
        ON CONFLICT (id) DO UPDATE SET until = excluded.until, seen = excluded.seen, orders = NULL, body = excluded.body;
    END IF;
    RETURN v_order;
END $$;

-- --- whole queues -----------------------------------------------------------------------------------------------------

-- Write records back; written is how many, taken the first that exists where p_strict forbids it.
CREATE FUNCTION restore_1(p_queues text[], p_ids text[], p_names bytea[], p_states int[], p_data bytea[], p_opts bytea[],
    p_priority int[], p_tags text[], p_attempts int[], p_max int[], p_crashes int[], p_fences int[], p_added bigint[],
    p_due bigint[], p_started bigint[], p_ended bigint[], p_lifo boolean[], p_on_crash boolean[], p_workers bytea[],
    p_parent_queues text[], p_parent_ids text[], p_policies smallint[], p_schedules text[], p_keys text[],
    p_deferred text[], p_progress bytea[], p_reasons bytea[], p_traces bytea[], p_results bytea[], p_strict boolean,
    p_instant bigint)
RETURNS TABLE (written int, taken text, taken_queue text) LANGUAGE plpgsql SET search_path FROM CURRENT
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_queues int[] := '{}';
    v_ids text[] := '{}';
    v_waits boolean := false;
    v_state int;
    v_q int;
    v_n bigint;
    v_known record;
    j job;
    p job;
    r record;
BEGIN
    PERFORM news_begun();
    IF p_strict THEN
        SELECT s.id, s.queue INTO v_known FROM (
            SELECT u.queue, u.id, u.o, row_number() OVER (PARTITION BY u.queue, u.id ORDER BY u.o) AS k
            FROM unnest(p_queues, p_ids) WITH ORDINALITY u(queue, id, o)) s
        WHERE s.k > 1 OR EXISTS (SELECT 1 FROM job x WHERE x.q = queue_found(s.queue) AND x.id = s.id)
        ORDER BY s.o LIMIT 1;
        IF v_known.id IS NOT NULL THEN
            RETURN QUERY SELECT 0, v_known.id, v_known.queue;
            RETURN;
        END IF;
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        v_q := queue_found(p_queues[i]);
        CONTINUE WHEN EXISTS (SELECT 1 FROM job WHERE q = v_q AND id = p_ids[i]);
        v_q := queue_made(p_queues[i]);
        PERFORM id_noted(v_q, p_ids[i]);
        v_state := CASE p_states[i] WHEN 7 THEN 1 WHEN 3 THEN 1 ELSE p_states[i] END;
        v_n := nextval('place');
        INSERT INTO job (n, q, state, tagset, priority, seq, due, ended, fence, attempts, max_attempts, crashes, added,
            started, lifo, on_crash, policy, parent_queue, parent_id, id, name, dedup, schedule, worker, deferred,
            reason, opts, progress, trace, result, data)
        VALUES (v_n, v_q, v_state, tagset_made(v_q, string_to_array(p_tags[i], E'\x1f')), p_priority[i], 1024 * v_n,
            CASE WHEN v_state = 2 THEN coalesce(p_due[i], v_now) END,
            CASE WHEN v_state IN (4, 5) THEN coalesce(p_ended[i], p_added[i]) END, p_fences[i], p_attempts[i], p_max[i],
            p_crashes[i], p_added[i], p_started[i], p_lifo[i], p_on_crash[i], p_policies[i], p_parent_queues[i],
            p_parent_ids[i], p_ids[i], p_names[i], p_keys[i], p_schedules[i], p_workers[i], p_deferred[i], p_reasons[i],
            p_opts[i], p_progress[i], p_traces[i], p_results[i], p_data[i]);
        PERFORM recounted(v_q, NULL, shown(v_state, p_priority[i]));
        v_queues := v_queues || v_q;
        v_ids := v_ids || p_ids[i];
        v_waits := v_waits OR v_state = 6;
    END LOOP;
    FOR r IN
        SELECT c AS child, w.name AS queue FROM unnest(v_queues, v_ids) WITH ORDINALITY u(q, id, o)
        JOIN job c ON c.q = u.q AND c.id = u.id JOIN queue w ON w.q = c.q WHERE c.parent_queue IS NOT NULL ORDER BY u.o
    LOOP
        PERFORM tied_again(r.queue, r.child);
    END LOOP;
    IF v_waits THEN
        FOR r IN
            SELECT c AS child, w.name AS queue FROM unnest(v_queues, v_ids) u(q, id)
            JOIN job x ON x.q = u.q AND x.id = u.id AND x.state = 6
            JOIN queue xq ON xq.q = x.q JOIN job c ON c.parent_queue = xq.name AND c.parent_id = x.id
            JOIN queue w ON w.q = c.q ORDER BY c.n
        LOOP
            PERFORM tied_again(r.queue, r.child);
        END LOOP;
    END IF;
    INSERT INTO dedup (q, key, id) SELECT x.q, x.dedup, x.id FROM unnest(v_queues, v_ids) WITH ORDINALITY u(q, id, o)
    JOIN job x ON x.q = u.q AND x.id = u.id WHERE x.dedup IS NOT NULL AND x.state NOT IN (4, 5) ORDER BY u.o
    ON CONFLICT (q, key) DO NOTHING;
    RETURN QUERY SELECT cardinality(v_ids), NULL::text, NULL::text;
END $$;

-- Tie a restored child to its parent, if that is there and does not know it.
CREATE FUNCTION tied_again(p_queue text, c job) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    p job := living_parent(c);
    v_is int := CASE WHEN c.state = 4 THEN 1 WHEN c.state <> 5 THEN 0 WHEN c.policy = 3 THEN NULL WHEN c.policy = 0 THEN 2
        ELSE 3 END;
BEGIN
    IF p.n IS NULL OR v_is IS NULL OR EXISTS (SELECT 1 FROM dep WHERE parent = p.n AND queue = p_queue AND id = c.id) THEN
        RETURN;
    END IF;
    PERFORM dep_put(p, p_queue, c.id, v_is, CASE WHEN v_is = 1 THEN c.result END,
        CASE WHEN v_is IN (2, 3) THEN c.reason END);
END $$;
