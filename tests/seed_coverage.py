"""What the five guides promise, row by row, and the tests that show it.

A guide is NestJS', StartupJS', Loco's current or older one, or Hyperstack's; the tests under ``tests/seeds`` are these
guides, ported. ``tests/seeds/test_coverage.py`` holds this list to the tests there are.
"""

from typing import Final, NamedTuple

MODES: Final = "tests/seeds/test_modes.py"
NEST: Final = "tests/seeds/test_nestjs_guide.py"
STARTUP: Final = "tests/seeds/test_startupjs_guide.py"
LOCO: Final = "tests/seeds/test_loco_guide.py"
CLASSIC: Final = "tests/seeds/test_loco_classic_guide.py"
HYPER: Final = "tests/seeds/test_hyperstack_guide.py"
ADMIN: Final = "tests/client/test_admin.py"
CLI_APP: Final = "tests/cli/test_app.py"
CLI_GENERATE: Final = "tests/cli/test_generate.py"
CLI_JOBS: Final = "tests/cli/test_jobs.py"
CLI_NOUNS: Final = "tests/cli/test_nouns.py"
CLI_START: Final = "tests/cli/test_start.py"
DISPATCHER: Final = "tests/di/test_dispatcher.py"
EXECUTOR: Final = "tests/worker/test_executor.py"
FOREGROUND: Final = "tests/di/test_foreground.py"
INTEROP: Final = "tests/interop"
KIT: Final = "tests/testing/test_harness.py"
LOCK: Final = "tests/client/test_lock.py"
MODULE: Final = "tests/test_module.py"
PROVIDER: Final = "tests/di/test_provider.py"
QUEUE: Final = "tests/client/test_queue.py"
REGISTRY: Final = "tests/di/test_registry.py"
RUNTIME: Final = "tests/worker/test_runtime.py"
SANDBOX: Final = "tests/worker/test_sandbox.py"
SCHEDULE: Final = "tests/job/test_schedule.py"
SETTINGS: Final = "tests/test_settings.py"
TICKER: Final = "tests/worker/test_ticker.py"


class Row(NamedTuple):
    """One promise.

    Attributes:
        title: The promise, in short.
        tests: The tests that show it: ``path::test`` or ``path::Class::test``, whatever their parameters.
        subject: Whose tests show it, if not these.
    """

    title: str
    tests: tuple[str, ...] = ()
    subject: str = ""


def row(title: str, *tests: str) -> Row:
    return Row(title, tests)


def elsewhere(title: str, subject: str) -> Row:
    return Row(title, subject=subject)


ROWS: Final[dict[int, Row]] = {
    # --- modes, stores and processes
    1: row(
        "jobs are stored, and a worker takes them while the caller goes on",
        f"{MODES}::test_perform_later_gives_a_handle_that_comes_to_its_result",
        f"{STARTUP}::TestTwoWorkers::test_servers_enqueue_and_one_process_takes_only_priority",
    ),
    2: row(
        "in the foreground the enqueueing call runs the job and raises its error",
        f"{MODES}::test_perform_later_raises_the_job_s_own_error_only_where_it_runs_at_once",
        f"{FOREGROUND}::test_it_runs_in_the_caller_s_task_and_a_scope_of_its_own",
    ),
    3: row(
        "jobs run in the background of one process and rest in its memory",
        f"{MODES}::test_perform_later_gives_a_handle_that_comes_to_its_result",
        f"{MODULE}::TestModes::test_background_async_ignores_the_url",
    ),
    4: row(
        "without a URL an application starts in process; in production it must say so",
        f"{LOCO}::TestModes::test_the_file_of_the_environment_says_it",
        f"{SETTINGS}::TestProduction::test_needs_a_store",
        f"{SETTINGS}::TestProduction::test_takes_memory_when_told_so_with_a_warning",
    ),
    5: row(
        "in_process: true needs no Redis and works in the same process",
        f"{HYPER}::TestInProcess::test_is_a_setting",
        f"{SETTINGS}::TestMode::test_in_process_is_short_for_foreground",
    ),
    6: row(
        "stand-alone worker processes, as many as wanted",
        f"{CLI_START}::TestOneProcess::test_tells_what_runs_and_ends_at_sigterm",
        f"{CLI_START}::TestSupervisor::test_starts_again_what_dies_and_passes_signals_on",
        f"{CLASSIC}::test_workers_compete_for_the_jobs_of_one_redis",
    ),
    7: row(
        "changing the store or the mode changes no code",
        f"{LOCO}::TestModes::test_the_code_is_the_same",
        f"{MODES}::test_the_record_of_a_job_is_the_same",
    ),
    8: row("Redis keeps the jobs", f"{CLASSIC}::test_workers_compete_for_the_jobs_of_one_redis"),
    9: row("Postgres keeps the jobs", f"{KIT}::TestServers::test_jobs_rest_there_and_time_is_the_test_s"),
    10: row(
        "SQLite keeps the jobs",
        f"{MODULE}::TestRunWorkers::test_runs_what_is_enqueued_and_hands_results_back",
        f"{STARTUP}::TestTwoWorkers::test_servers_enqueue_and_one_process_takes_only_priority",
    ),
    11: row(
        "this process' memory keeps the jobs",
        f"{MODULE}::TestRunWorkers::test_runs_what_is_enqueued_and_hands_results_back",
        f"{MODULE}::TestModes::test_without_a_url_memory_is_said_at_start",
    ),
    12: row(
        "where the store is comes from the environment, by several names in an order",
        f"{SETTINGS}::TestAliases::test_of_the_url_go_in_order",
    ),
    13: row(
        "?mode=rwc makes the file, ?mode=rw does not",
        f"{LOCO}::TestModes::test_the_code_is_the_same",
        "tests/store/test_open.py::test_a_file_that_must_be_there",
    ),
    14: row(
        "a dangerous flush at start empties our own queues, in production only when allowed twice",
        f"{LOCO}::TestModes::test_a_dangerous_flush_empties_the_queues_at_start",
        f"{CLASSIC}::test_a_flush_at_start_empties_its_own_prefix_and_no_other",
        f"{SETTINGS}::TestProduction::test_refuses_to_flush",
    ),
    15: row(
        "num_workers: so many jobs at once in a process, or as a processor says",
        f"{LOCO}::TestModes::test_num_workers_is_how_many_jobs_run_at_once",
        f"{LOCO}::TestModes::test_no_more_jobs_of_a_processor_run_at_once",
    ),
    16: row(
        "one worker process uses a machine; several for loads on the CPU",
        f"{CLI_START}::TestSupervisor::test_starts_again_what_dies_and_passes_signals_on",
        f"{LOCO}::TestModes::test_no_more_jobs_of_a_processor_run_at_once",
    ),
    17: row("consumers compete over Redis", f"{CLASSIC}::test_workers_compete_for_the_jobs_of_one_redis"),
    18: row(
        "what lies in Redis is BullMQ's, readable by its ecosystem",
        f"{INTEROP}/test_jobs.py::test_our_plain_job_runs_at_node",
        f"{INTEROP}/test_jobs.py::test_a_plain_job_of_node_runs_here",
        f"{INTEROP}/test_bull_board.py::test_the_board_lists_queues_and_jobs_by_state",
    ),
    19: row(
        "work spreads over instances, and what one abandons another takes",
        f"{NEST}::TestModule::test_two_instances_share_the_work",
        f"{RUNTIME}::TestRunning::test_abandoned_jobs_come_back_and_listeners_hear_of_it",
    ),
    20: row(
        "without configuration the web process runs the workers too",
        f"{STARTUP}::TestTwoWorkers::test_workers_start_with_the_server_unless_told_otherwise",
        "tests/example_app/test_shop.py::test_the_web_application_runs_the_workers_too",
    ),
    21: row(
        "servers only enqueue, one process takes all queues or only priority",
        f"{STARTUP}::TestTwoWorkers::test_servers_enqueue_and_one_process_takes_only_priority",
    ),
    22: row(
        "a server without workers",
        f"{MODULE}::TestLifespan::test_starts_workers_only_if_the_settings_say_so",
        f"{MODULE}::TestRunWorkers::test_a_disabled_process_enqueues_but_runs_nothing",
    ),
    23: row("start --server-and-worker", f"{CLI_START}::TestServer::test_serves_and_works_in_one_process"),
    24: row(
        "start --all, without tags",
        f"{CLI_START}::TestServer::test_serves_and_works_in_one_process",
        f"{CLI_START}::TestServer::test_what_cannot_be_meant_is_told",
    ),
    # --- environment and configuration
    25: row(
        "WORKERS_ENABLED=false runs no worker, and enqueueing goes on",
        f"{NEST}::TestModule::test_the_environment_says_which_workers_run",
    ),
    26: row("ENABLED_WORKERS=all", f"{NEST}::TestModule::test_the_environment_says_which_workers_run"),
    27: row(
        "ENABLED_WORKERS=a,b; an unknown name stops the start",
        f"{NEST}::TestModule::test_the_environment_says_which_workers_run",
        f"{NEST}::TestModule::test_an_unknown_name_stops_the_start_and_lists_the_known_ones",
    ),
    28: row("QUEUE_REDIS_URL", f"{NEST}::TestModule::test_the_address_comes_from_the_environment"),
    29: row(
        "WORKERS=default,priority",
        f"{STARTUP}::TestTwoWorkers::test_the_environment_says_which_start",
        f"{SETTINGS}::TestAliases::test_both_selections_that_differ_are_an_error",
    ),
    30: row("auto_start", f"{STARTUP}::TestTwoWorkers::test_workers_start_with_the_server_unless_told_otherwise"),
    31: row(
        "auto_start_production",
        f"{STARTUP}::TestTwoWorkers::test_workers_start_with_the_server_unless_told_otherwise",
    ),
    32: row("concurrency", f"{LOCO}::TestModes::test_no_more_jobs_of_a_processor_run_at_once"),
    33: row(
        "a default time limit, and others per handler and per call",
        f"{SETTINGS}::TestDefaults::test_are_those_of_the_documentation",
        f"{EXECUTOR}::TestLimits::test_the_jobs_own_limit_wins_over_handler_and_setting",
        f"{STARTUP}::TestRunJob::test_has_a_time_limit_per_call",
    ),
    34: row(
        "handlers in a process of their own, by decorator or by setting",
        f"{STARTUP}::TestSandbox::test_a_process_of_its_own_with_a_container_of_its_own",
        f"{SANDBOX}::TestNeeded::test_handlers_and_the_setting_say_which",
    ),
    35: row(
        "or in a thread with a loop of its own",
        f"{STARTUP}::TestSandbox::test_a_thread_of_its_own_with_a_container_of_its_own",
    ),
    36: elsewhere("a route turns the dashboard on", "dashboard"),
    37: elsewhere("a dashboard that only shows", "dashboard"),
    38: row("the URL of Redis", f"{NEST}::TestModule::test_the_address_comes_from_the_environment"),
    39: row(
        "tests find an empty place and touch nothing else on the server",
        f"{HYPER}::TestTruncate::test_tests_do_not_see_each_other",
        f"{KIT}::TestServers::test_truncate_empties_one_place_that_all_share_and_leaves_it",
    ),
    40: row(
        "settings in a file of the environment",
        f"{LOCO}::TestModes::test_the_file_of_the_environment_says_it",
        f"{SETTINGS}::TestSources::test_stronger_ones_win",
    ),
    41: row(
        "settings as a part of the application's own",
        f"{NEST}::TestModule::test_queues_are_registered_several_at_once_and_settings_come_from_the_application",
        f"{SETTINGS}::TestEmbedding::test_in_other_settings_reads_the_same_variables",
    ),
    42: row(
        "adding the providers turns it on; an import does nothing",
        f"{NEST}::TestModule::test_the_environment_says_which_workers_run",
        "tests/test_architecture.py::TestImport::test_reads_no_setting",
    ),
    43: row(
        "configured through the module",
        f"{NEST}::TestModule::test_queues_are_registered_several_at_once_and_settings_come_from_the_application",
        f"{MODULE}::TestSettings::test_come_from_the_containers_own_configuration",
    ),
    # --- defining work
    44: row(
        "@processor('email')",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
    ),
    45: row(
        "one method takes every job, and returns its result",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{NEST}::TestTesting::test_the_worker_with_a_replaced_dependency",
    ),
    46: row(
        "job.data, of its declared type",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{LOCO}::TestWorkers::test_refuse_arguments_of_another_type_at_the_call_and_in_the_worker",
    ),
    47: row(
        "job.id",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{NEST}::TestProcessor::test_listeners_hear_of_progress_and_ends",
    ),
    48: row(
        "processors are built by the container, one for each attempt",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{PROVIDER}::test_concurrent_jobs_never_share_a_request_object",
    ),
    49: row(
        "a queue injected into any service, by name or by class",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{PROVIDER}::test_a_queue_is_one_object_by_class_and_by_name",
    ),
    50: row(
        "queue.add(name, data)",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        "tests/typing/test_checkers.py::test_what_is_right_is_accepted",
        "tests/typing/test_checkers.py::test_each_wrong_line_is_rejected_and_no_other",
    ),
    51: row("WorkersModule.for_root", f"{NEST}::TestModule::test_the_environment_says_which_workers_run"),
    52: row(
        "queues share their connections",
        "tests/store/redis/test_faults.py::test_two_connections_serve_fifty_callers",
        "tests/store/redis/test_layout.py::test_a_waiting_worker_is_seen_under_nodes_name",
    ),
    53: row(
        "several queues registered at once",
        f"{NEST}::TestModule::test_queues_are_registered_several_at_once_and_settings_come_from_the_application",
    ),
    54: row(
        "what the module is given is registered, without a further call",
        f"{NEST}::TestModule::test_the_environment_says_which_workers_run",
        f"{REGISTRY}::test_the_features_are_collected",
    ),
    55: row(
        "a worker class has a queue of its own",
        f"{LOCO}::TestWorkers::test_are_built_from_the_context_and_perform_later",
        f"{HYPER}::TestStats::test_nine_columns_in_their_order_and_a_row_for_each_worker",
    ),
    56: row(
        "a worker class with perform(args)",
        f"{HYPER}::TestPerform::test_later_in_standard_mode_lasts_as_long_as_storing_the_job",
    ),
    57: row(
        "what perform returns is the result",
        f"{HYPER}::TestPerform::test_later_in_standard_mode_lasts_as_long_as_storing_the_job",
        f"{HYPER}::TestPerform::test_now_runs_at_once_whatever_the_mode",
    ),
    58: row(
        "typed arguments; an error fails the job",
        f"{CLASSIC}::test_a_worker_that_is_registered_performs_what_the_controller_enqueues",
        f"{CLASSIC}::test_an_error_as_result_fails_the_job",
    ),
    59: row(
        "a worker is built from the application's context, or by the application itself",
        f"{LOCO}::TestWorkers::test_are_built_from_the_context_and_perform_later",
        f"{PROVIDER}::test_a_class_the_application_provides_itself",
    ),
    60: row(
        "a queue of its own, else default",
        f"{LOCO}::TestWorkers::test_have_the_class_s_name_and_the_default_queue_unless_they_say_otherwise",
        f"{LOCO}::TestWorkers::test_are_built_from_the_context_and_perform_later",
    ),
    61: row(
        "a worker's tags",
        f"{LOCO}::TestTags::test_a_worker_s_tags_are_put_on_its_jobs_unless_the_call_says_otherwise",
    ),
    62: row(
        "a job is called after its class, unless that says otherwise",
        f"{LOCO}::TestWorkers::test_have_the_class_s_name_and_the_default_queue_unless_they_say_otherwise",
    ),
    63: row("perform_later of a class", f"{LOCO}::TestWorkers::test_are_built_from_the_context_and_perform_later"),
    64: row(
        "workers are registered with the module",
        f"{CLASSIC}::test_a_worker_that_is_registered_performs_what_the_controller_enqueues",
    ),
    65: row(
        "all handlers are known when the container is made, so what they lack is known too",
        f"{PROVIDER}::test_what_a_constructor_needs_is_part_of_the_graph",
    ),
    66: row(
        "a package of workers is discovered",
        f"{STARTUP}::TestJobModules::test_each_module_of_the_folder_is_a_job_named_after_its_function",
        "tests/di/test_registration.py::test_discovery_takes_what_is_defined_in_the_package",
    ),
    67: row(
        "arguments of another type are refused at the call, and once more in the worker",
        f"{LOCO}::TestWorkers::test_refuse_arguments_of_another_type_at_the_call_and_in_the_worker",
    ),
    68: row(
        "state is shared through the container, or travels in the arguments",
        f"{LOCO}::TestWorkers::test_are_built_from_the_context_and_perform_later",
    ),
    69: row(
        "a job to a module, named after its function",
        f"{STARTUP}::TestJobModules::test_each_module_of_the_folder_is_a_job_named_after_its_function",
    ),
    70: row(
        "handlers are async or plain functions",
        f"{STARTUP}::TestRunJob::test_returns_what_the_job_returns",
        f"{STARTUP}::TestJobModules::test_a_plain_function_runs_in_a_thread",
    ),
    71: row(
        "data come first, then the context and what is injected",
        f"{STARTUP}::TestJobModules::test_data_come_first_and_dependencies_are_injected",
        f"{STARTUP}::TestLog::test_lines_have_a_level_data_and_an_error",
    ),
    72: row(
        "the job is in the context, and can be injected",
        f"{STARTUP}::TestLog::test_lines_have_a_level_data_and_an_error",
        f"{PROVIDER}::test_any_dependency_may_ask_for_the_job",
    ),
    73: row(
        "a job says its worker",
        f"{STARTUP}::TestJobModules::test_each_module_of_the_folder_is_a_job_named_after_its_function",
        f"{STARTUP}::TestTwoWorkers::test_servers_enqueue_and_one_process_takes_only_priority",
    ),
    74: row(
        "a job says that it is a singleton",
        f"{STARTUP}::TestSingleton::test_one_in_flight_whatever_the_data",
        f"{STARTUP}::TestSingleton::test_one_in_flight_per_key_and_others_beside_it",
    ),
    75: row("a job says its schedule", f"{STARTUP}::TestCron::test_six_fields_have_the_seconds_first"),
    76: row("two workers, default and priority", f"{STARTUP}::TestTwoWorkers::test_the_environment_says_which_start"),
    77: row(
        "an unknown worker or queue stops the start and lists the known ones",
        f"{STARTUP}::TestTwoWorkers::test_an_unknown_one_lists_those_there_are",
        f"{PROVIDER}::test_an_unknown_queue_name_is_refused_at_creation",
    ),
    78: row(
        "a plugin adds its jobs, with their schedules",
        f"{STARTUP}::TestPlugins::test_a_feature_adds_jobs_beside_those_of_the_application",
    ),
    79: row(
        "installed plugins are found",
        f"{STARTUP}::TestPlugins::test_installed_packages_are_found_by_their_entry_point",
        f"{MODULE}::TestFeatures::test_installed_ones_are_found_by_entry_point",
    ),
    80: row(
        "generate worker: its code and a test, and nothing is overwritten",
        f"{LOCO}::TestGenerate::test_a_worker_its_place_and_its_test",
        f"{CLI_GENERATE}::test_what_exists_is_left_alone",
    ),
    81: row(
        "tasks, schedules, distribution, priorities, retries",
        f"{NEST}::TestSchedules::test_a_tick_calls_the_method",
        f"{NEST}::TestModule::test_two_instances_share_the_work",
        f"{NEST}::TestProcessor::test_lower_priorities_go_first",
        f"{NEST}::TestProcessor::test_a_throwing_worker_is_tried_again_after_1_and_2_seconds",
    ),
    # --- enqueueing, waiting, results
    82: row(
        "performLater stores the job and returns",
        f"{HYPER}::TestPerform::test_later_in_standard_mode_lasts_as_long_as_storing_the_job",
    ),
    83: row(
        "in process it lasts until the job has finished",
        f"{HYPER}::TestPerform::test_later_in_process_lasts_until_the_job_has_finished",
    ),
    84: row(
        "performNow runs it at once, in a scope of its own, whatever the mode",
        f"{HYPER}::TestPerform::test_now_runs_at_once_whatever_the_mode",
        f"{MODES}::test_perform_now_runs_in_the_caller_and_stores_nothing",
        f"{DISPATCHER}::test_perform_now_returns_the_result_and_stores_nothing",
    ),
    85: row(
        "typed arguments from anywhere in the application",
        f"{CLASSIC}::test_a_worker_that_is_registered_performs_what_the_controller_enqueues",
    ),
    86: row(
        "runJob by name waits for the value",
        f"{STARTUP}::TestRunJob::test_returns_what_the_job_returns",
        f"{MODES}::test_run_job_returns_the_value",
    ),
    87: row(
        "runJob raises what the job raised; no class is built from a stored name",
        f"{STARTUP}::TestRunJob::test_raises_when_the_job_throws",
        f"{MODES}::test_run_job_raises_when_the_job_fails",
        "tests/job/test_failure.py::test_a_name_of_a_real_class_builds_nothing",
    ),
    88: row(
        "a time limit for one call, which the caller's patience follows",
        f"{STARTUP}::TestRunJob::test_has_a_time_limit_per_call",
        f"{DISPATCHER}::test_the_caller_s_patience",
    ),
    89: row(
        "an unknown job name lists the known ones, and stores nothing",
        f"{STARTUP}::TestJobModules::test_each_module_of_the_folder_is_a_job_named_after_its_function",
        f"{MODES}::test_an_unknown_name_lists_the_known_ones",
        f"{DISPATCHER}::test_a_wrong_payload_stores_nothing",
    ),
    90: row(
        "all is imported from one place",
        "tests/test_architecture.py::TestPublicNames::test_are_those_the_stub_tells_type_checkers",
    ),
    91: row(
        "starting workers directly, in production too, and dropping stale schedules",
        f"{STARTUP}::TestTwoWorkers::test_workers_start_with_the_server_unless_told_otherwise",
        f"{STARTUP}::TestCron::test_schedules_that_are_no_longer_declared_go_at_the_next_start",
    ),
    92: row(
        "the return value is kept with the job",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{MODES}::test_the_record_of_a_job_is_the_same",
    ),
    93: row(
        "large payloads are refused before anything is stored",
        "tests/client/test_bad_input.py::test_bad_data_is_refused_and_nothing_stored",
        "tests/client/test_bad_input.py::test_a_large_payload_is_allowed_where_the_setting_says_so",
    ),
    94: row(
        "a test can hold a handler to running twice",
        f"{NEST}::TestTesting::test_a_handler_that_may_run_twice",
        f"{KIT}::TestTheRest::test_idempotent_handlers_pass_and_others_are_named",
    ),
    # --- schedules
    95: row("a pattern, without data", f"{STARTUP}::TestCron::test_six_fields_have_the_seconds_first"),
    96: row(
        "a pattern with data, checked when it is declared",
        f"{STARTUP}::TestCron::test_a_schedule_brings_its_data",
        "tests/di/test_registration.py::test_a_scheduled_handler_with_wrong_data",
    ),
    97: row("a scheduled job may be run by hand", f"{STARTUP}::TestCron::test_the_same_job_may_be_run_by_hand"),
    98: row(
        "six fields have the seconds first",
        f"{STARTUP}::TestCron::test_six_fields_have_the_seconds_first",
        f"{SCHEDULE}::TestExpressions::test_alias_is_written_out",
    ),
    99: row(
        "schedules no longer declared go at the start, those of others stay",
        f"{STARTUP}::TestCron::test_schedules_that_are_no_longer_declared_go_at_the_next_start",
        f"{TICKER}::TestDeclaring::test_those_of_others_and_those_added_at_run_time_stay",
    ),
    100: row(
        "@cron on a method, daily at midnight",
        f"{NEST}::TestSchedules::test_a_tick_calls_the_method",
        f"{NEST}::TestSchedules::test_midnight_comes_once_a_day",
    ),
    101: row(
        "named expressions, all that NestJS has",
        f"{NEST}::TestSchedules::test_a_tick_calls_the_method",
        f"{SCHEDULE}::TestExpressions::test_members_are_those_of_nest",
        f"{SCHEDULE}::TestExpressions::test_member_fires_as_its_name_says",
    ),
    102: row("any service may hold schedules, without a queue", f"{NEST}::TestSchedules::test_a_tick_calls_the_method"),
    103: row(
        "repeat in queue.add, and schedules by id",
        f"{NEST}::TestOperating::test_a_repeatable_job",
        f"{QUEUE}::test_upsert_changes_a_schedule_in_place",
    ),
    104: row(
        "one run for each tick, however many instances there are",
        f"{TICKER}::TestManyInstances::test_eight_that_start_at_once_store_one_job",
        f"{TICKER}::TestManyInstances::test_clocks_that_lie_change_no_slot",
        "tests/worker/test_simulation.py::test_with_the_loops_of_real_workers",
    ),
    # --- options, retries, progress, events, locks
    105: row("a singleton has one job in flight", f"{STARTUP}::TestSingleton::test_one_in_flight_whatever_the_data"),
    106: row(
        "or one for each key made of its data",
        f"{STARTUP}::TestSingleton::test_one_in_flight_per_key_and_others_beside_it",
    ),
    107: row("a key must be JSON", f"{STARTUP}::TestSingleton::test_a_key_must_be_json"),
    108: row(
        "who comes second gets the first one's run and its result",
        f"{STARTUP}::TestSingleton::test_run_job_joins_the_run_that_is_under_way",
    ),
    109: row("other keys run beside it", f"{STARTUP}::TestSingleton::test_one_in_flight_per_key_and_others_beside_it"),
    110: row("attempts", f"{NEST}::TestProcessor::test_a_throwing_worker_is_tried_again_after_1_and_2_seconds"),
    111: row(
        "an exponential backoff, and others",
        f"{NEST}::TestProcessor::test_a_throwing_worker_is_tried_again_after_1_and_2_seconds",
        "tests/job/test_retry.py::TestDelay::test_exponential_doubles",
        "tests/job/test_retry.py::TestDelay::test_fixed_waits_the_same_each_time",
        f"{EXECUTOR}::TestOutcomes::test_the_applications_own_backoff_is_asked",
    ),
    112: row(
        "a delay, or an instant",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
        f"{NEST}::TestProcessor::test_a_job_may_name_its_hour",
    ),
    113: row("priorities, lower ones first", f"{NEST}::TestProcessor::test_lower_priorities_go_first"),
    114: row("remove_on_complete", f"{NEST}::TestProcessor::test_records_go_or_stay_as_told"),
    115: row("remove_on_fail", f"{NEST}::TestProcessor::test_records_go_or_stay_as_told"),
    116: row(
        "an exception is tried again; some say never, or later",
        f"{NEST}::TestProcessor::test_a_throwing_worker_is_tried_again_after_1_and_2_seconds",
        f"{NEST}::TestProcessor::test_what_a_worker_may_say_about_its_retries",
    ),
    117: row(
        "progress, as a number or JSON",
        f"{NEST}::TestProcessor::test_listeners_hear_of_progress_and_ends",
        f"{MODES}::test_the_record_of_a_job_is_the_same",
        f"{KIT}::TestTheRest::test_a_job_made_up_for_it_takes_what_handlers_tell_it",
    ),
    118: row("a listener to completed jobs", f"{NEST}::TestProcessor::test_listeners_hear_of_progress_and_ends"),
    119: row(
        "a listener to failed attempts, and to the last of them",
        f"{NEST}::TestProcessor::test_listeners_hear_of_progress_and_ends",
        "tests/worker/test_consumer.py::TestHandlers::test_listeners_are_told_after_settling",
    ),
    120: row("a listener to progress", f"{NEST}::TestProcessor::test_listeners_hear_of_progress_and_ends"),
    121: row(
        "any number of listeners, each in a scope of its own; their errors change nothing",
        f"{NEST}::TestProcessor::test_a_listener_that_fails_changes_nothing",
        f"{REGISTRY}::test_a_listener_is_called_with_fields_by_name_in_a_scope_of_its_own",
    ),
    122: row(
        "a lock is acquired, or somebody else has it",
        f"{NEST}::TestSchedules::test_a_lock_is_given_back_by_its_holder_alone",
    ),
    123: row(
        "a lock is released by its holder alone",
        f"{NEST}::TestSchedules::test_a_lock_is_given_back_by_its_holder_alone",
    ),
    124: row(
        "only the holder of the lock does a tick's work",
        f"{NEST}::TestSchedules::test_only_the_holder_of_the_lock_does_the_work",
        f"{LOCK}::test_hold_releases_in_the_end",
        f"{TICKER}::TestTicking::test_a_run_holds_the_lock_it_was_declared_with_or_is_skipped",
    ),
    125: row(
        "a line in the job's own log, with data and error",
        f"{STARTUP}::TestLog::test_lines_have_a_level_data_and_an_error",
    ),
    126: row("with a level", f"{STARTUP}::TestLog::test_lines_have_a_level_data_and_an_error"),
    127: row(
        "the handler's own loggers go there too, where asked",
        f"{STARTUP}::TestLog::test_records_of_the_handler_s_own_loggers_are_captured_where_asked",
    ),
    128: row(
        "past its time a run ends with an error, and its scope is closed all the same",
        f"{STARTUP}::TestRunJob::test_has_a_time_limit_per_call",
        f"{PROVIDER}::test_a_job_over_its_time_closes_every_finalizer",
        f"{EXECUTOR}::TestScopes::test_finalizers_are_not_cut_short_by_a_limit",
    ),
    129: row(
        "async code is cancelled, a thread is left behind",
        f"{EXECUTOR}::TestLimits::test_a_run_over_its_limit_is_cancelled_and_tried_again",
        f"{EXECUTOR}::TestLimits::test_a_thread_past_its_limit_is_left_behind",
    ),
    130: row(
        "a process past its time is killed and replaced",
        f"{STARTUP}::TestSandbox::test_a_process_over_its_time_is_killed_and_replaced",
    ),
    131: row(
        "every job has a time limit, or that it has none is said",
        f"{SETTINGS}::TestDefaults::test_are_those_of_the_documentation",
        f"{CLI_NOUNS}::TestCheck::test_warnings_have_their_exit_code",
    ),
    132: row(
        "errors are kept with their trace, none is swallowed",
        f"{NEST}::TestProcessor::test_errors_are_kept_with_their_trace",
        f"{EXECUTOR}::TestOutcomes::test_no_exception_of_a_handler_gets_out",
    ),
    133: row(
        "each run is logged with its particulars",
        f"{NEST}::TestProcessor::test_each_run_is_logged_with_its_particulars",
        f"{CLI_START}::TestOneProcess::test_log_for_machines_is_json",
    ),
    # --- operating
    134: row(
        "pause and resume; what runs goes on to its end",
        f"{NEST}::TestOperating::test_pause_and_resume",
        "tests/store/test_limits.py::test_jobs_end_in_a_paused_queue",
    ),
    135: row(
        "clean what completed long ago",
        f"{NEST}::TestOperating::test_clean_deletes_what_is_older_by_state",
        f"{QUEUE}::test_clean_deletes_the_old_of_one_state",
        f"{QUEUE}::test_clean_in_bullmqs_order_gets_a_hint",
    ),
    136: row("clean what failed long ago", f"{NEST}::TestOperating::test_clean_deletes_what_is_older_by_state"),
    137: row("counts by state", f"{NEST}::TestOperating::test_counts_by_state"),
    138: row(
        "old jobs go by themselves, and by hand",
        f"{KIT}::TestAdvance::test_what_ended_is_kept_as_long_as_in_production",
        f"{LOCO}::TestUpkeep::test_tidy_takes_what_completed_or_was_cancelled",
        f"{RUNTIME}::TestStarting::test_what_is_kept_is_said_at_the_start",
    ),
    139: row("start --worker", f"{CLI_START}::TestOneProcess::test_tells_what_runs_and_ends_at_sigterm"),
    140: row(
        "a table of all workers",
        f"{HYPER}::TestStats::test_nine_columns_in_their_order_and_a_row_for_each_worker",
        f"{CLI_NOUNS}::TestStats::test_watch_repeats_itself",
    ),
    141: row(
        "its nine columns, in their order",
        f"{HYPER}::TestStats::test_nine_columns_in_their_order_and_a_row_for_each_worker",
        f"{CLI_NOUNS}::TestStats::test_ready_jobs_of_a_paused_queue_are_paused",
    ),
    142: row(
        "the same in the portal",
        f"{HYPER}::TestStats::test_the_portal_shows_the_same",
        f"{CLI_NOUNS}::TestShell::test_awaits_and_has_commands",
    ),
    143: row("start --worker=tag1,tag2", f"{CLI_START}::TestOneProcess::test_takes_jobs_of_its_tags_alone"),
    144: row("without tags: jobs without tags only", f"{LOCO}::TestTags::test_a_worker_takes"),
    145: row("with tags: jobs that share one", f"{LOCO}::TestTags::test_a_worker_takes"),
    146: row(
        "no tags beside a web server",
        f"{CLI_START}::TestServer::test_what_cannot_be_meant_is_told",
        f"{CLI_START}::TestServer::test_tags_of_the_environment_do_not_go_with_it",
    ),
    147: row("the case of tags matters", f"{LOCO}::TestTags::test_a_worker_takes"),
    148: row(
        "a worker's tags are put on its jobs, unless the call says otherwise",
        f"{LOCO}::TestTags::test_a_worker_s_tags_are_put_on_its_jobs_unless_the_call_says_otherwise",
    ),
    149: row(
        "a list of tags means any of them",
        f"{LOCO}::TestTags::test_a_worker_takes",
        f"{CLI_START}::TestOneProcess::test_takes_jobs_of_its_tags_alone",
        f"{CLI_APP}::TestOptionsOfEveryCommand::test_may_stand_behind_it",
    ),
    150: row(
        "jobs cancel, by name",
        f"{LOCO}::TestUpkeep::test_cancel_by_name",
        f"{LOCO}::TestUpkeep::test_a_running_job_is_asked_to_stop_where_told",
        f"{CLI_JOBS}::TestMany::test_cancel_by_name",
    ),
    151: row(
        "jobs tidy",
        f"{LOCO}::TestUpkeep::test_tidy_takes_what_completed_or_was_cancelled",
        f"{CLI_JOBS}::TestMany::test_tidy_takes_completed_and_cancelled_alone",
    ),
    152: row(
        "jobs purge, by age",
        f"{LOCO}::TestUpkeep::test_purge_takes_what_is_old_and_writes_it_down_first",
        f"{ADMIN}::test_purge_deletes_the_old",
    ),
    153: row(
        "jobs purge --dump",
        f"{LOCO}::TestUpkeep::test_purge_takes_what_is_old_and_writes_it_down_first",
        f"{CLI_JOBS}::TestMany::test_purge_dumps_first",
    ),
    154: row(
        "jobs dump, as JSON or YAML",
        f"{LOCO}::TestUpkeep::test_a_dump_may_be_edited_by_hand_and_imported",
        f"{CLI_JOBS}::TestFiles::test_come_back",
    ),
    155: row(
        "jobs import, checked before anything is stored",
        f"{LOCO}::TestUpkeep::test_import_checks_payloads_before_anything_is_stored",
        f"{CLI_JOBS}::TestFiles::test_come_back",
    ),
    156: row(
        "export, edit, import",
        f"{LOCO}::TestUpkeep::test_a_dump_may_be_edited_by_hand_and_imported",
        f"{CLI_JOBS}::TestFiles::test_may_be_edited_when_it_is_said",
    ),
    157: row("an export has every job with all there is", f"{ADMIN}::test_a_dump_brings_everything_back"),
    158: row(
        "-e chooses the environment",
        f"{CLI_APP}::TestOptionsOfEveryCommand::test_environment_chooses_files",
        f"{SETTINGS}::TestAliases::test_environment_goes_before_app_env",
    ),
    159: row(
        "--help, --version",
        f"{CLI_APP}::TestHelp::test_names_every_command",
        f"{CLI_APP}::TestHelp::test_each_command_has_some",
        f"{CLI_APP}::TestHelp::test_version",
    ),
    160: elsewhere("a web application to manage jobs", "dashboard"),
    161: row("a worker process", f"{CLI_START}::TestOneProcess::test_tells_what_runs_and_ends_at_sigterm"),
    162: row(
        "a worker process in production, whatever auto_start says",
        f"{STARTUP}::TestTwoWorkers::test_workers_start_with_the_server_unless_told_otherwise",
        f"{CLI_APP}::TestOptionsOfEveryCommand::test_may_stand_behind_it",
    ),
    163: row(
        "a process for one worker name",
        f"{STARTUP}::TestTwoWorkers::test_the_environment_says_which_start",
        f"{CLI_START}::TestOneProcess::test_tells_what_runs_and_ends_at_sigterm",
    ),
    164: elsewhere("a web UI over the queues", "dashboard"),
    165: elsewhere("which queues it shows, in which framework", "dashboard"),
    166: elsewhere("where it is mounted", "dashboard"),
    167: elsewhere("it is installed separately", "dashboard"),
    168: row(
        "the health of queues and workers can be watched",
        f"{CLI_NOUNS}::TestDoctor::test_names_what_it_finds_with_a_remedy",
        f"{CLI_START}::TestProbes::test_follow_the_life_of_a_worker",
        "tests/store/test_metrics.py::test_each_kind_has_its_own_total",
    ),
    169: row(
        "each command on jobs is a method too",
        f"{LOCO}::TestUpkeep::test_cancel_by_name",
        f"{LOCO}::TestUpkeep::test_tidy_takes_what_completed_or_was_cancelled",
        f"{LOCO}::TestUpkeep::test_purge_takes_what_is_old_and_writes_it_down_first",
        f"{LOCO}::TestUpkeep::test_a_dump_may_be_edited_by_hand_and_imported",
        f"{ADMIN}::test_requeue_puts_back_what_nobody_runs",
    ),
    # --- testing
    170: row(
        "a container with the worker and replaced dependencies",
        f"{NEST}::TestTesting::test_the_worker_with_a_replaced_dependency",
        f"{KIT}::TestTheRest::test_an_override_nobody_provides_is_an_error",
    ),
    171: row("the worker from the container", f"{NEST}::TestTesting::test_the_worker_with_a_replaced_dependency"),
    172: row(
        "its method called with a made-up job",
        f"{NEST}::TestTesting::test_the_worker_with_a_replaced_dependency",
        f"{KIT}::TestTheRest::test_a_handler_alone_needs_no_container",
    ),
    173: row(
        "assertions on what was replaced",
        f"{NEST}::TestTesting::test_the_worker_with_a_replaced_dependency",
        f"{NEST}::TestProcessor::test_a_job_added_by_a_service_reaches_the_worker_with_its_options",
    ),
    174: row(
        "a fixture boots the application",
        f"{HYPER}::TestPerform::test_later_in_standard_mode_lasts_as_long_as_storing_the_job",
        "tests/testing/test_plugin.py::test_the_kit_works_under",
    ),
    175: row(
        "tests need no server, and may ask for one",
        f"{HYPER}::TestPerform::test_later_in_process_lasts_until_the_job_has_finished",
        f"{KIT}::TestPlugin::test_the_store_marker",
        f"{KIT}::TestServers::test_jobs_rest_there_and_time_is_the_test_s",
    ),
    176: row(
        "results are values to compare with a snapshot",
        f"{HYPER}::TestPerform::test_results_are_values_to_compare_with_a_snapshot",
        f"{MODES}::test_results_are_what_json_makes_of_them",
    ),
    177: row(
        "a test in the foreground asserts right after the call",
        f"{CLASSIC}::test_a_test_boots_the_application_in_the_foreground_and_asserts_after_the_call",
        f"{LOCO}::test_tests_run_in_the_foreground",
        f"{KIT}::TestDrain::test_runs_what_is_due_in_order_and_counts_it",
    ),
    178: row("tests/workers", f"{LOCO}::TestGenerate::test_a_worker_its_place_and_its_test"),
    179: row("the generated test passes", f"{CLI_GENERATE}::test_the_tests_pass_as_generated"),
    180: row(
        "each test boots the application for itself, and tests may run side by side",
        f"{KIT}::TestServers::test_two_tests_at_once_do_not_see_each_other",
        f"{KIT}::TestServers::test_nothing_is_left_behind",
    ),
}
"""The promises by their number."""
