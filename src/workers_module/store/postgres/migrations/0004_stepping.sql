-- min_code: 4
--
-- The consumer's calls: settle, make due jobs ready, claim, renew; and the sweep.

-- Where the rows of some jobs lie; null for one that is not there. One by one: a plan for all of them that was made while
-- the table was empty would read the whole queue.
CREATE FUNCTION places_of(p_q int, p_ids text[]) RETURNS tid[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(SELECT (SELECT ctid FROM job WHERE q = p_q AND id = u.id) FROM unnest(p_ids) WITH ORDINALITY u(id, o)
        ORDER BY u.o);
END $$;

CREATE FUNCTION is_held(j job, p_token text, p_fence int, p_now bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(j.state = 3 AND (j.token = p_token OR (j.fence = p_fence AND j.lease <= p_now)), false)
$$;

-- Write a job's new state after a run; its lease and the request to cancel it end.
CREATE FUNCTION left_active(j job, p_state int, p_seq bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE job SET state = p_state, seq = p_seq, token = NULL, lease = NULL, lapsed = NULL, cancel = false
    WHERE q = j.q AND id = j.id;
    PERFORM recounted(j.q, 3, shown(p_state, j.priority));
END $$;

-- Put a job off, or behind the others at once.
CREATE FUNCTION put_off(j job, p_delay bigint, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF p_delay <= 0 THEN
        PERFORM left_active(j, 1, CASE WHEN j.lifo AND j.priority = 0 THEN ahead() ELSE behind() END);
        PERFORM tell(j.q, 'waiting', j.id, NULL, 'active');
    ELSE
        PERFORM left_active(j, 2, behind());
        UPDATE job SET due = p_now + p_delay WHERE q = j.q AND id = j.id;
        PERFORM tell(j.q, 'delayed', j.id, raw((p_now + p_delay)::text), NULL);
    END IF;
END $$;

-- Settle one outcome: kind 0 Completed (a: result), 1 Failed (a: reason), 2 Retry (a: reason), 3 Snooze, 4 Release,
-- 5 WaitChildren. Codes: 0 ok, 1 missing, 2 already, 3 lease lost, 4 pending, 5 child failed, 6 nothing pending.
CREATE FUNCTION settled_one(
    p_q int, p_queue text, p_id text, p_token text, p_fence int, p_kind int, p_a bytea, p_trace bytea,
    p_delay bigint, p_child text, p_keep bigint, p_now bigint
) RETURNS int LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    j job;
BEGIN
    SELECT * INTO j FROM job WHERE q = p_q AND id = p_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 1;
    END IF;
    IF NOT is_held(j, p_token, p_fence, p_now) THEN
        IF j.state = 3 OR j.fence <> p_fence THEN
            RETURN 3;
        END IF;
        RETURN CASE WHEN CASE p_kind WHEN 0 THEN j.state = 4 WHEN 1 THEN j.state = 5 ELSE j.state NOT IN (4, 5) END
            THEN 2 ELSE 3 END;
    END IF;
    IF p_kind = 0 THEN
        IF j.broken > 0 THEN
            RETURN 5;
        ELSIF j.pending > 0 THEN
            RETURN 4;
        END IF;
        IF j.dedup IS NOT NULL THEN
            PERFORM key_freed(j, p_now);
        END IF;
        PERFORM child_completed(p_queue, j, p_a, p_now);
        IF p_keep = 0 THEN
            PERFORM deleted(j);
        ELSE
            PERFORM left_active(j, 4, behind());
            UPDATE job SET ended = p_now, attempts = attempts + 1, result = p_a WHERE q = j.q AND id = j.id;
        END IF;
        PERFORM tell(p_q, 'completed', j.id, p_a, 'active');
    ELSIF p_kind = 1 THEN
        IF j.dedup IS NOT NULL THEN
            PERFORM key_freed(j, p_now);
        END IF;
        PERFORM child_failed(p_queue, j, p_a, p_now);
        IF p_keep = 0 THEN
            PERFORM deleted(j);
        ELSE
            PERFORM left_active(j, 5, behind());
            UPDATE job SET ended = p_now, attempts = attempts + 1, deferred = NULL, reason = p_a,
                trace = coalesce(p_trace, trace) WHERE q = j.q AND id = j.id;
        END IF;
        PERFORM tell(p_q, 'failed', j.id, p_a, 'active');
        IF j.attempts + 1 >= j.max_attempts THEN
            PERFORM tell(p_q, 'retries-exhausted', j.id, raw((j.attempts + 1)::text), NULL);
        END IF;
    ELSIF p_kind = 2 THEN
        UPDATE job SET attempts = attempts + 1, reason = p_a, trace = coalesce(p_trace, trace)
        WHERE q = j.q AND id = j.id;
        PERFORM put_off(j, p_delay, p_now);
    ELSIF p_kind = 3 THEN
        PERFORM put_off(j, p_delay, p_now);
    ELSIF p_kind = 4 THEN
        PERFORM left_active(j, 1, ahead());
        PERFORM tell(p_q, 'waiting', j.id, NULL, 'active');
    ELSE
        IF j.broken > 0 THEN
            RETURN 5;
        END IF;
        IF (CASE WHEN p_child IS NULL THEN j.pending = 0
            ELSE NOT EXISTS (SELECT 1 FROM dep WHERE parent = j.n AND state = 0 AND id = p_child) END) THEN
            RETURN 6;
        END IF;
        PERFORM left_active(j, 6, behind());
        UPDATE job SET delay = 0 WHERE q = j.q AND id = j.id;
        PERFORM tell(p_q, 'waiting-children', j.id, NULL, 'active');
    END IF;
    RETURN 0;
END $$;

-- Count runs in this minute, and keep so many minutes.
CREATE FUNCTION measured(p_q int, p_kind int, p_num int, p_minutes int, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_minute bigint := p_now / 60000;
    v_slot int := pg_backend_pid() % 16;
    v_rows int;
BEGIN
    UPDATE metric SET num = num + p_num
    WHERE q = p_q AND kind = p_kind AND slot = v_slot AND minute = ANY (ARRAY[v_minute, -1])
        AND EXISTS (SELECT 1 FROM metric k WHERE k.q = p_q AND k.kind = p_kind AND k.minute = -3 AND k.slot = 0
            AND k.num = p_minutes);
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    IF v_rows = 2 THEN
        RETURN;
    END IF;
    -- The first time in a minute and connection; either row may be there already and have counted.
    INSERT INTO metric AS m (q, kind, minute, slot, num) VALUES
        (p_q, p_kind, v_minute, v_slot, p_num), (p_q, p_kind, -1, v_slot, CASE WHEN v_rows = 1 THEN 0 ELSE p_num END)
    ON CONFLICT (q, kind, minute, slot) DO UPDATE SET num = m.num + excluded.num;
    INSERT INTO metric AS m (q, kind, minute, slot, num) VALUES (p_q, p_kind, -2, 0, v_minute)
    ON CONFLICT (q, kind, minute, slot) DO NOTHING;
    INSERT INTO metric AS m (q, kind, minute, slot, num) VALUES (p_q, p_kind, -3, 0, p_minutes)
    ON CONFLICT (q, kind, minute, slot) DO UPDATE SET num = excluded.num WHERE m.num <> excluded.num;
    DELETE FROM metric WHERE q = p_q AND kind = p_kind AND minute >= 0 AND minute < v_minute - p_minutes;
END $$;

-- Make due jobs ready, in the order of their instants; how many.
CREATE FUNCTION promoted(p_q int, p_limit bigint, p_now bigint) RETURNS int LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_places tid[];
    v_events told[];
    v_high int;
    v_base bigint;
    d bigint[] := zeros();
BEGIN
    v_places := ARRAY(SELECT ctid FROM job WHERE q = p_q AND state = 2 AND due <= p_now ORDER BY due, seq
        LIMIT p_limit FOR UPDATE SKIP LOCKED);
    IF cardinality(v_places) = 0 THEN
        RETURN 0;
    END IF;
    v_base := behind();
    WITH ready AS (
        UPDATE job SET state = 1, due = NULL, seq = v_base + CASE WHEN u.o < 1024 THEN u.o ELSE behind() - v_base END
        FROM unnest(v_places) WITH ORDINALITY u(place, o) WHERE job.ctid = u.place
        RETURNING u.o, job.id, job.priority
    )
    SELECT array_agg(ROW('waiting', id, NULL, 'delayed')::told ORDER BY o), count(*) FILTER (WHERE priority > 0)
    INTO v_events, v_high FROM ready;
    d[1] := cardinality(v_places) - v_high;
    d[2] := -cardinality(v_places);
    d[7] := v_high;
    PERFORM counted(p_q, d);
    PERFORM written(p_q, v_events);
    RETURN cardinality(v_places);
END $$;

-- The best jobs of some sets of tags, locked (others skip them), in order; where they lie, which nobody can change now.
-- p_from is a place before which nothing is ready, as far as the caller knows, but for what was put in front: an index
-- keeps the entries of claimed jobs until a vacuum, and who began at its front each time would walk past more and more
-- of them. Once that does not give enough, all is looked at. last is where the next call may begin.
CREATE FUNCTION best(p_q int, p_tags text[], p_take bigint, p_from bigint, OUT places tid[], OUT ids text[],
    OUT high int, OUT last bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_sets int[];
BEGIN
    IF p_tags IS NOT NULL THEN
        v_sets := ARRAY(SELECT t.id FROM tagset t WHERE t.q = p_q AND t.tags && p_tags);
        SELECT array_agg(c.place), array_agg(c.id), count(*) FILTER (WHERE c.priority > 0)
        INTO places, ids, high
        FROM (
            SELECT b.place, b.id, b.priority FROM unnest(v_sets) t(id) CROSS JOIN LATERAL (
                SELECT ctid AS place, id, priority, seq FROM job WHERE q = p_q AND state = 1 AND tagset = t.id
                ORDER BY priority, seq LIMIT p_take FOR UPDATE SKIP LOCKED
            ) b ORDER BY b.priority, b.seq LIMIT p_take
        ) c;
        RETURN;
    END IF;
    IF p_from IS NOT NULL THEN
        SELECT array_agg(b.place), array_agg(b.id), count(*) FILTER (WHERE b.priority > 0), max(b.seq)
        INTO places, ids, high, last
        FROM (
            SELECT ctid AS place, id, priority, seq FROM job WHERE q = p_q AND state = 1 AND tagset = 0
                AND (priority, seq) >= (0, least(p_from, (SELECT seq FROM job WHERE q = p_q AND state = 1 AND tagset = 0
                    AND priority = 0 AND seq < 0 ORDER BY seq LIMIT 1)))
            ORDER BY priority, seq LIMIT p_take FOR UPDATE SKIP LOCKED
        ) b;
    END IF;
    IF p_from IS NULL OR cardinality(places) IS DISTINCT FROM p_take THEN
        SELECT array_agg(b.place), array_agg(b.id), count(*) FILTER (WHERE b.priority > 0), max(b.seq)
        INTO places, ids, high, last
        FROM (
            SELECT ctid AS place, id, priority, seq FROM job WHERE q = p_q AND state = 1 AND tagset = 0
            ORDER BY priority, seq LIMIT p_take FOR UPDATE SKIP LOCKED
        ) b;
    END IF;
    IF high > 0 OR cardinality(places) IS DISTINCT FROM p_take THEN
        last := NULL;
    END IF;
END $$;

-- Tell that a queue is drained, if it is: nothing is ready or active, nor (p_all) delayed. Of those who end the last jobs
-- at the same time none sees what the others do, so that each lets the ones before it commit, and the last one tells.
CREATE FUNCTION drained(p_q int, p_all boolean, c bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF c[1] + c[7] > 0 OR (p_all AND c[2] > 0) THEN
        RETURN;
    END IF;
    IF c[3] > 0 THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.drained', p_q));
        c := counts_of(p_q);
        IF c[1] + c[7] + c[3] > 0 OR (p_all AND c[2] > 0) THEN
            RETURN;
        END IF;
    END IF;
    PERFORM written(p_q, ARRAY[ROW('drained', NULL, NULL, NULL)::told]);
END $$;

-- Settle outcomes, then claim. p_simple: all are Completed, of different jobs whose end concerns no other, and kept
-- alike; then of the arrays from p_kinds on there is only p_a, and one element of those that say what is kept.
-- p_ids, p_tokens, p_fences and p_places (where each row lay when it was claimed) are texts with a separator, which a
-- driver writes faster than an array's elements.
-- Rows out: the claimed jobs, and one with place null that holds all else. ready_from and done_from are what the next
-- call may give as p_ready_from and p_done_from: places and instants before which there is nothing to claim and to delete.
-- Each expression costs half a microsecond the first time in a transaction, and each statement some thirty: that is why
-- what is not needed is not asked for, and why functions are called in assignments.
CREATE FUNCTION step_1(
    p_queue text, p_worker bytea, p_token text, p_take int, p_lease bigint, p_tags text[], p_rate bigint,
    p_window bigint, p_metrics int, p_resume boolean, p_ready_from bigint, p_done_from bigint, p_ids text,
    p_tokens text, p_fences text, p_places text, p_kinds smallint[], p_a bytea[],
    p_traces bytea[], p_delays bigint[], p_children text[],
    p_keep_counts bigint[], p_keep_ages bigint[], p_keep_limits bigint[], p_simple boolean, p_instant bigint
) RETURNS TABLE (
    place tid, seq bigint, id text, name bytea, data bytea, opts bytea, priority int, tags text[], attempts int,
    max_attempts int, crashes int, fence int, added bigint, started bigint, lifo boolean, on_crash boolean,
    cancel boolean, worker bytea, parent_queue text, parent_id text, policy smallint, schedule text, dedup text,
    deferred text, progress bytea, reason bytea, trace bytea, result bytea,
    codes smallint[], wake_at bigint, paused boolean, now bigint, hint int, tagged boolean, news text[],
    ready_from bigint, done_from bigint
) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := coalesce(p_instant, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    w queue;
    v_ended text[] := string_to_array(p_ids, E'\x1f');
    v_tokens text[] := string_to_array(p_tokens, E'\x1f');
    v_fences int[];
    v_count int := cardinality(v_ended);
    v_codes smallint[] := '{}';
    v_code smallint;
    v_kind int;
    v_done bigint[];
    v_places tid[];
    v_looked boolean := false;
    v_quick int := 0;
    v_some int;
    v_completed int := 0;
    v_failed int := 0;
    v_kept int := 0;
    v_slow boolean := false;
    v_limited boolean := false;
    v_base bigint;
    v_due bigint;
    v_promoted int := 0;
    v_rate bigint;
    v_window bigint;
    v_room bigint := p_take;
    v_best tid[];
    v_held text[];
    v_ids text[];
    v_last bigint;
    v_newest bigint;
    v_starts boolean[];
    v_taken int := 0;
    v_high int := 0;
    v_freed int := 0;
    v_hint int := 0;
    v_closed bigint;
    v_told boolean;
    k record;
    c bigint[];
BEGIN
    SELECT * INTO w FROM queue WHERE queue.name = p_queue;
    IF w.q IS NULL THEN
        RETURN QUERY SELECT NULL::tid, NULL::bigint, NULL::text, NULL::bytea, NULL::bytea, NULL::bytea, NULL::int,
            NULL::text[], NULL::int, NULL::int, NULL::int, NULL::int, NULL::bigint, NULL::bigint, NULL::boolean,
            NULL::boolean, NULL::boolean, NULL::bytea, NULL::text, NULL::text, NULL::smallint, NULL::text, NULL::text,
            NULL::text, NULL::bytea, NULL::bytea, NULL::bytea, NULL::bytea,
            array_fill(1::smallint, ARRAY[v_count]), NULL::bigint, false, v_now, 0, false, '{}'::text[], NULL::bigint,
            NULL::bigint;
        RETURN;
    END IF;
    IF w.concurrency IS NOT NULL OR w.rate_max IS NOT NULL OR p_rate IS NOT NULL OR w.rate_until > v_now THEN
        v_limited := true;
        IF p_take > 0 AND NOT w.paused AND (w.concurrency IS NOT NULL OR w.rate_max IS NOT NULL OR p_rate IS NOT NULL) THEN
            -- Whoever claims under a limit does so alone.
            SELECT * INTO w FROM queue WHERE queue.q = w.q FOR UPDATE;
        END IF;
    END IF;

    -- Settle. The usual case, jobs that depend on nothing and complete, is one statement. A token is there only while
    -- its job is active. Rows are where their claim left them, unless something was written to them since, and by now
    -- another may lie there: then they are looked up. (By IS TRUE no index is thought of.)
    IF v_count > 0 THEN
        IF p_simple THEN
            v_base := nextval('place') * 1024;
            v_places := string_to_array(p_places, E'\x1f')::tid[];
            LOOP
                IF p_keep_counts[1] = 0 THEN
                    WITH gone AS (
                        DELETE FROM job USING unnest(v_places, v_ended, v_tokens) WITH ORDINALITY u(place, id, token, o)
                        WHERE job.ctid = u.place AND (job.id = u.id) IS TRUE AND job.token = u.token
                            AND job.children = 0 AND job.logged = 0 AND job.dedup IS NULL AND job.parent_queue IS NULL
                        RETURNING u.o
                    )
                    SELECT v_done || array_agg(gone.o) INTO v_done FROM gone;
                    v_quick := coalesce(cardinality(v_done), 0);
                ELSE
                    UPDATE job SET state = 4, ended = v_now, seq = v_base + u.o, attempts = job.attempts + 1,
                        token = NULL, lease = NULL, lapsed = NULL, cancel = false, result = u.result
                    FROM unnest(v_places, v_ended, v_tokens, p_a) WITH ORDINALITY u(place, id, token, result, o)
                    WHERE job.ctid = u.place AND (job.id = u.id) IS TRUE AND job.token = u.token
                        AND job.children = 0 AND job.dedup IS NULL AND job.parent_queue IS NULL;
                    GET DIAGNOSTICS v_some = ROW_COUNT;
                    v_quick := v_quick + v_some;
                    v_kept := v_quick;
                END IF;
                EXIT WHEN v_looked OR v_quick = v_count;
                v_places := places_of(w.q, v_ended);
                v_looked := true;
            END LOOP;
            v_completed := v_quick;
        END IF;
        IF v_quick = v_count THEN
            v_codes := array_fill(0::smallint, ARRAY[v_count]);
            v_freed := v_count;
        ELSE
            v_slow := true;
            v_fences := string_to_array(p_fences, E'\x1f')::int[];
            IF v_kept > 0 THEN
                v_done := ARRAY(SELECT u.o FROM unnest(places_of(w.q, v_ended)) WITH ORDINALITY u(place, o)
                    JOIN job ON job.ctid = u.place WHERE job.seq = v_base + u.o);
            END IF;
            IF v_quick > 0 THEN
                PERFORM counted(w.q, ARRAY[0, 0, -v_quick, v_kept, 0, 0, 0]);
                PERFORM written(w.q, ARRAY(SELECT ROW('completed', u.id, u.a, 'active')::told
                    FROM unnest(v_ended, p_a) WITH ORDINALITY u(id, a, o) WHERE u.o = ANY (v_done) ORDER BY u.o));
                v_freed := v_quick;
                v_quick := 0;
                v_kept := 0;
            END IF;
            -- The rows other calls may want as well, in one order.
            PERFORM 1 FROM (
                SELECT unnest(places_of(w.q, v_ended)) AS place
                UNION
                SELECT p.ctid FROM unnest(places_of(w.q, v_ended)) u(place) JOIN job j ON j.ctid = u.place
                JOIN queue pq ON pq.name = j.parent_queue JOIN job p ON p.q = pq.q AND p.id = j.parent_id
            ) one JOIN job ON job.ctid = one.place ORDER BY job.n FOR UPDATE OF job;
            FOR i IN 1 .. v_count LOOP
                IF i = ANY (v_done) THEN
                    v_codes[i] := 0;
                    CONTINUE;
                END IF;
                v_kind := CASE WHEN p_simple THEN 0 ELSE p_kinds[i] END;
                v_code := settled_one(w.q, p_queue, v_ended[i], v_tokens[i], v_fences[i], v_kind, p_a[i],
                    p_traces[i], p_delays[i], p_children[i], p_keep_counts[CASE WHEN p_simple THEN 1 ELSE i END], v_now);
                v_codes[i] := v_code;
                IF v_code = 0 THEN
                    v_freed := v_freed + 1;
                    IF v_kind = 0 THEN
                        v_completed := v_completed + 1;
                    ELSIF v_kind = 1 THEN
                        v_failed := v_failed + 1;
                    ELSIF v_kind = 4 OR (v_kind IN (2, 3) AND p_delays[i] <= 0) THEN
                        v_hint := v_hint + 1;
                    END IF;
                END IF;
            END LOOP;
        END IF;
    END IF;

    SELECT due INTO v_due FROM job WHERE job.q = w.q AND job.state = 2 ORDER BY due LIMIT 1;
    IF v_due <= v_now THEN
        v_promoted := promoted(w.q, 2 * p_take + 100, v_now);
        SELECT due INTO v_due FROM job WHERE job.q = w.q AND job.state = 2 ORDER BY due LIMIT 1;
    END IF;

    IF p_resume THEN
        v_held := ARRAY(SELECT job.id FROM job WHERE job.q = w.q AND job.state = 3 AND job.token = p_token);
        UPDATE job SET lease = v_now + p_lease, lapsed = NULL WHERE job.q = w.q AND job.id = ANY (v_held);
        v_room := p_take - cardinality(v_held);
    END IF;

    -- Claim as far as pause, concurrency and windows let.
    IF v_limited THEN
        v_rate := p_rate;
        v_window := p_window;
        IF w.rate_max IS NOT NULL AND w.rate_ms IS NOT NULL THEN
            v_rate := w.rate_max;
            v_window := coalesce(p_window, w.rate_ms);
        END IF;
        IF w.rate_until > v_now AND w.rate_used >= coalesce(v_rate, 9007199254740991) THEN
            v_closed := w.rate_until;
            v_room := 0;
        ELSIF w.concurrency IS NOT NULL AND v_room > 0 THEN
            v_room := least(v_room, w.concurrency + v_quick - (counts_of(w.q))[3]);
        END IF;
    END IF;
    IF v_room > 0 AND NOT w.paused THEN
        k := best(w.q, p_tags, v_room, p_ready_from);
        v_best := k.places;
        v_ids := k.ids;
        v_high := k.high;
        v_last := k.last;
        IF v_rate IS NOT NULL AND v_best IS NOT NULL THEN
            IF w.rate_until <= v_now THEN
                w.rate_used := 0;
            END IF;
            -- A job that will only be failed uses no start.
            SELECT array_agg(j.deferred IS NULL ORDER BY u.o) INTO v_starts
            FROM unnest(v_best) WITH ORDINALITY u(place, o) JOIN job j ON j.ctid = u.place;
            FOR i IN 1 .. cardinality(v_best) LOOP
                IF w.rate_used >= v_rate THEN
                    v_best := v_best[1 : i - 1];
                    v_ids := v_ids[1 : i - 1];
                    v_last := NULL;
                    EXIT;
                END IF;
                IF v_starts[i] THEN
                    w.rate_used := w.rate_used + 1;
                    IF w.rate_used = 1 THEN
                        w.rate_until := v_now + v_window;
                    END IF;
                END IF;
            END LOOP;
            v_high := (SELECT count(*) FROM unnest(v_best) u(place) JOIN job j ON j.ctid = u.place
                WHERE j.priority > 0);
            UPDATE queue SET rate_used = w.rate_used, rate_until = w.rate_until WHERE queue.q = w.q;
        END IF;
        v_taken := coalesce(cardinality(v_best), 0);
    END IF;
    IF v_taken > 0 THEN
        v_base := nextval('place') * 1024;
        -- Positions beyond the gap between two places are only met by claims of more than a thousand.
        RETURN QUERY UPDATE job AS j SET state = 3, seq = v_base + u.o, token = p_token, lease = v_now + p_lease,
                lapsed = NULL, started = v_now, worker = p_worker, fence = j.fence + 1
            FROM unnest(v_best) WITH ORDINALITY u(place, o) WHERE j.ctid = u.place
            RETURNING j.ctid, j.seq, j.id, j.name, j.data, j.opts, j.priority,
                CASE WHEN j.tagset <> 0 THEN (SELECT t.tags FROM tagset t WHERE t.id = j.tagset) END, j.attempts,
                j.max_attempts, j.crashes, j.fence, j.added, j.started, j.lifo, j.on_crash, j.cancel, j.worker,
                j.parent_queue, j.parent_id, j.policy, j.schedule, j.dedup, j.deferred, j.progress, j.reason, j.trace,
                j.result, NULL::smallint[], NULL::bigint, NULL::boolean, NULL::bigint, NULL::int, NULL::boolean,
                NULL::text[], NULL::bigint, NULL::bigint;
        IF v_taken >= 1024 THEN
            PERFORM nextval('place') FROM generate_series(1, v_taken / 1024);
        END IF;
    END IF;
    IF v_quick + v_taken > 0 THEN
        v_told := counted(w.q, ARRAY[v_high - v_taken, 0, v_taken - v_quick, v_kept, 0, 0, -v_high]) IS NOT NULL
            AND written(w.q, w.events, v_quick + v_taken,
                array_fill('c'::text, ARRAY[v_quick]) || array_fill('a'::text, ARRAY[v_taken]),
                CASE WHEN v_quick > 0 THEN v_ended || v_ids ELSE v_ids END, CASE WHEN v_quick > 0 THEN p_a END, NULL)
                IS NOT NULL;
    END IF;

    IF v_completed + v_failed > 0 THEN
        IF p_metrics > 0 THEN
            IF v_completed > 0 THEN
                PERFORM measured(w.q, 0, v_completed, p_metrics, v_now);
            END IF;
            IF v_failed > 0 THEN
                PERFORM measured(w.q, 1, v_failed, p_metrics, v_now);
            END IF;
        END IF;
        IF p_simple THEN
            IF p_keep_counts[1] > 0 OR (p_keep_counts[1] IS NULL AND p_keep_ages[1] IS NOT NULL) THEN
                k := retained(w.q, 4, p_keep_counts[1], p_keep_ages[1], p_keep_limits[1], p_done_from, v_quick, v_now);
                v_newest := k.newest;
            END IF;
        ELSE
            FOR k IN
                SELECT DISTINCT u.kind, u.count, u.age, u.limit_
                FROM unnest(p_kinds, p_keep_counts, p_keep_ages, p_keep_limits, v_codes) u(kind, count, age, limit_, code)
                WHERE u.code = 0 AND u.kind < 2 AND u.count IS DISTINCT FROM 0 AND (u.count IS NOT NULL OR u.age IS NOT NULL)
            LOOP
                PERFORM retained(w.q, 4 + k.kind, k.count, k.age, k.limit_, NULL, NULL, v_now);
            END LOOP;
        END IF;
    END IF;

    -- Counting costs a look at all slots, so it is done only when the answer may matter.
    IF v_slow OR v_limited OR v_promoted > 0 OR (v_taken = 0 AND v_completed > 0) THEN
        c := counts_of(w.q);
        IF v_completed + v_failed > 0 AND v_taken = 0 THEN
            PERFORM drained(w.q, p_take > 0, c);
        END IF;
        IF w.concurrency IS NULL THEN
            v_freed := 0;
        END IF;
        IF NOT w.paused THEN
            v_hint := least(c[1] + c[7], v_hint + v_promoted + greatest(v_freed - v_taken, 0));
        ELSE
            v_hint := 0;
        END IF;
        IF v_closed IS NULL AND w.rate_until > v_now AND w.rate_used >= coalesce(v_rate, 9007199254740991) THEN
            v_closed := w.rate_until;
        END IF;
        IF c[1] + c[7] = 0 THEN
            v_closed := NULL;
        END IF;
    END IF;
    IF cardinality(v_held) > 0 THEN
        RETURN QUERY SELECT j.ctid, j.seq, j.id, j.name, j.data, j.opts, j.priority, t.tags, j.attempts, j.max_attempts,
            j.crashes, j.fence, j.added, j.started, j.lifo, j.on_crash, j.cancel, j.worker, j.parent_queue,
            j.parent_id, j.policy, j.schedule, j.dedup, j.deferred, j.progress, j.reason, j.trace, j.result,
            NULL::smallint[], NULL::bigint, NULL::boolean, NULL::bigint, NULL::int, NULL::boolean, NULL::text[],
            NULL::bigint, NULL::bigint
        FROM unnest(v_held) u(id) JOIN job j ON j.q = w.q AND j.id = u.id LEFT JOIN tagset t ON t.id = j.tagset;
    END IF;
    codes := v_codes;
    wake_at := least(v_due, v_closed);
    paused := w.paused;
    now := v_now;
    hint := v_hint;
    tagged := v_hint > 0 AND EXISTS (SELECT 1 FROM tagset WHERE tagset.q = w.q);
    news := CASE WHEN v_slow THEN news() ELSE '{}' END;
    ready_from := v_last;
    done_from := v_newest;
    RETURN NEXT;
END $$;

CREATE FUNCTION renew_1(p_queue text, p_ids text[], p_tokens text[], p_fences int[], p_lease bigint, p_instant bigint)
RETURNS TABLE (lost text[], cancelled text[]) LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_q int := queue_found(p_queue);
    v_lost text[];
    v_kept text[];
    v_cancelled text[];
BEGIN
    -- To lose a renewal in a crash is harmless; a claim must not be lost.
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM 1 FROM (SELECT DISTINCT place FROM unnest(places_of(v_q, p_ids)) place) u JOIN job j ON j.ctid = u.place
        ORDER BY j.n FOR NO KEY UPDATE OF j;
    SELECT array_agg(u.id ORDER BY u.o) FILTER (WHERE j.id IS NULL), array_agg(j.id) FILTER (WHERE j.id IS NOT NULL)
    INTO v_lost, v_kept
    FROM unnest(p_ids, p_tokens, p_fences) WITH ORDINALITY u(id, token, fence, o)
    LEFT JOIN LATERAL (
        SELECT id FROM job WHERE q = v_q AND id = u.id AND is_held(job, u.token, u.fence, v_now) OFFSET 0) j ON true;
    WITH kept AS (
        UPDATE job SET lease = v_now + p_lease, lapsed = NULL WHERE q = v_q AND id = ANY (v_kept) RETURNING id, cancel
    )
    SELECT array_agg(id) INTO v_cancelled FROM kept WHERE cancel;
    RETURN QUERY SELECT coalesce(v_lost, '{}'), coalesce(v_cancelled, '{}');
END $$;

CREATE FUNCTION sweep_1(p_queue text, p_interval bigint, p_crashes int, p_completed_age bigint, p_failed_age bigint,
    p_crashed text, p_instant bigint)
RETURNS TABLE (recovered text[], idle text[], wake_at bigint, more boolean, now bigint, hint int, news text[])
LANGUAGE plpgsql SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_now bigint := instant(p_instant);
    v_stop timestamptz := clock_timestamp() + interval '50 milliseconds';
    v_q int;
    v_swept bigint;
    v_paused boolean;
    v_recovered text[] := '{}';
    v_idle text[] := '{}';
    v_events told[] := '{}';
    v_hint int := 0;
    v_some int;
    v_over boolean;
    v_due bigint;
    v_ages bigint[] := ARRAY[p_completed_age, p_failed_age];
    v_more boolean := false;
    d bigint[] := zeros();
    j job;
    k record;
BEGIN
    SELECT q, paused INTO v_q, v_paused FROM queue WHERE name = p_queue;
    IF NOT FOUND THEN
        RETURN QUERY SELECT '{}'::text[], '{}'::text[], NULL::bigint, false, v_now, 0, '{}'::text[];
        RETURN;
    END IF;
    PERFORM news_begun();
    IF pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.sweep', v_q)) THEN
        SELECT swept INTO v_swept FROM upkeep WHERE q = v_q;
    END IF;
    IF v_swept IS NULL OR (v_swept BETWEEN 0 AND v_now AND v_now < v_swept + p_interval) THEN
        SELECT due INTO v_due FROM job WHERE q = v_q AND state = 2 ORDER BY due LIMIT 1;
        RETURN QUERY SELECT '{}'::text[], '{}'::text[], v_due, false, v_now, 0, '{}'::text[];
        RETURN;
    END IF;

    -- Jobs whose lease this look and one an interval ago found run out. The last started goes in front first, so that
    -- in the end the first started stands before it.
    FOR j IN
        SELECT * FROM job WHERE q = v_q AND state = 3 AND lease <= v_now AND lapsed <= v_now - p_interval
        ORDER BY seq DESC FOR UPDATE SKIP LOCKED
    LOOP
        v_over := j.on_crash OR (j.crashes + 1 >= p_crashes
            AND (j.schedule IS NULL OR NOT EXISTS (SELECT 1 FROM schedule WHERE q = v_q AND id = j.schedule)));
        UPDATE job SET state = 1, seq = ahead(), token = NULL, lease = NULL, lapsed = NULL, cancel = false,
            crashes = crashes + 1, deferred = CASE WHEN v_over THEN p_crashed ELSE deferred END
        WHERE q = j.q AND id = j.id;
        d[3] := d[3] - 1;
        d[shown(1, j.priority)] := d[shown(1, j.priority)] + 1;
        v_events := v_events || ROW('waiting', j.id, NULL, 'active')::told || ROW('stalled', j.id, NULL, NULL)::told;
        v_recovered := j.id || v_recovered;
        IF clock_timestamp() > v_stop THEN
            v_more := true;
            EXIT;
        END IF;
    END LOOP;
    PERFORM counted(v_q, d);
    PERFORM written(v_q, v_events);
    UPDATE job SET lapsed = v_now WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM job WHERE q = v_q AND state = 3 AND lease <= v_now AND lapsed IS NULL ORDER BY n
        FOR UPDATE SKIP LOCKED));

    LOOP
        v_some := promoted(v_q, 200, v_now);
        v_hint := v_hint + v_some;
        EXIT WHEN v_some < 200 OR clock_timestamp() > v_stop;
    END LOOP;
    DELETE FROM dedup WHERE q = v_q AND until <= v_now;
    FOR i IN 1 .. 2 LOOP
        IF v_ages[i] IS NOT NULL THEN
            FOR k IN 1 .. 5 LOOP
                v_some := (oldest_deleted(v_q, 3 + i, -9223372036854775807, v_now - v_ages[i], 200)).gone;
                EXIT WHEN v_some < 200 OR clock_timestamp() > v_stop;
            END LOOP;
        END IF;
    END LOOP;
    FOR k IN
        WITH gone AS (
            DELETE FROM untrimmed WHERE (q, pid, state, count, age) IN (
                SELECT q, pid, state, count, age FROM untrimmed WHERE q = v_q FOR UPDATE SKIP LOCKED)
            RETURNING state, nullif(count, -1) AS count, nullif(age, -1) AS age
        )
        SELECT DISTINCT state, count, age FROM gone
    LOOP
        IF NOT (retained(v_q, k.state, k.count, k.age, 1000, NULL, NULL, v_now)).done THEN
            PERFORM untrimmed_noted(v_q, k.state, k.count, k.age);
            v_more := true;
        END IF;
    END LOOP;
    DELETE FROM lock WHERE name IN (SELECT name FROM lock WHERE until <= v_now FOR UPDATE SKIP LOCKED);
    PERFORM events_trimmed(v_q);
    PERFORM folded(v_q);
    v_more := v_more OR clock_timestamp() > v_stop;
    v_idle := ARRAY(SELECT s.id FROM schedule s WHERE s.q = v_q AND NOT s.paused AND NOT EXISTS (
        SELECT 1 FROM job j WHERE j.q = v_q AND j.id = 'repeat:' || s.id || ':' || s.slot AND j.state NOT IN (4, 5))
        ORDER BY s.n);
    UPDATE upkeep SET swept = CASE WHEN v_more THEN -1 ELSE v_now END WHERE q = v_q;
    v_hint := CASE WHEN v_paused THEN 0 ELSE v_hint + cardinality(v_recovered) END;
    SELECT due INTO v_due FROM job WHERE q = v_q AND state = 2 ORDER BY due LIMIT 1;
    RETURN QUERY SELECT v_recovered, v_idle, v_due, v_more, v_now, v_hint, news();
END $$;

-- Fold the counters that transactions of the application's left in rows of their own.
CREATE FUNCTION folded(p_q int) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM tally WHERE q = p_q AND slot = ANY (ARRAY(
            SELECT slot FROM tally WHERE q = p_q AND slot >= 16 FOR UPDATE SKIP LOCKED)) RETURNING *
    )
    SELECT ARRAY[sum(waiting), sum(delayed), sum(active), sum(completed), sum(failed), sum(parked), sum(prioritized)]::bigint[]
    INTO d FROM gone;
    IF d[1] IS NOT NULL THEN
        PERFORM counted(p_q, d);
        UPDATE queue SET gone = false WHERE q = p_q AND gone;
    END IF;
END $$;
