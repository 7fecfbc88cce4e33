# find_package(rwkv_edge) gives the targets rwkv_edge::rwkv_edge (shared) and rwkv_edge::static, each where its
# library is installed. This file lies in <prefix>/share/rwkv_edge/cmake or <prefix>/lib/cmake/rwkv_edge.
get_filename_component(_rwkv_edge_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

find_path(RWKV_EDGE_INCLUDE_DIR rwkv_edge.h HINTS "${_rwkv_edge_prefix}/include" NO_DEFAULT_PATH)
set(_rwkv_edge_folders "${_rwkv_edge_prefix}/lib" "${_rwkv_edge_prefix}/lib64"
    "${_rwkv_edge_prefix}/lib/${CMAKE_LIBRARY_ARCHITECTURE}")
find_library(RWKV_EDGE_SHARED_LIBRARY NAMES librwkv_edge.so HINTS ${_rwkv_edge_folders} NO_DEFAULT_PATH)
find_library(RWKV_EDGE_STATIC_LIBRARY NAMES librwkv_edge.a HINTS ${_rwkv_edge_folders} NO_DEFAULT_PATH)

if(RWKV_EDGE_SHARED_LIBRARY AND NOT TARGET rwkv_edge::rwkv_edge)
  add_library(rwkv_edge::rwkv_edge SHARED IMPORTED)
  set_target_properties(rwkv_edge::rwkv_edge PROPERTIES
    IMPORTED_LOCATION "${RWKV_EDGE_SHARED_LIBRARY}"
    IMPORTED_SONAME "librwkv_edge.so.1"
    INTERFACE_INCLUDE_DIRECTORIES "${RWKV_EDGE_INCLUDE_DIR}")
endif()
if(RWKV_EDGE_STATIC_LIBRARY AND NOT TARGET rwkv_edge::static)
  find_package(Threads REQUIRED)
  add_library(rwkv_edge::static STATIC IMPORTED)
  set_target_properties(rwkv_edge::static PROPERTIES
    IMPORTED_LOCATION "${RWKV_EDGE_STATIC_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${RWKV_EDGE_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "Threads::Threads;m;${CMAKE_DL_LIBS}")
endif()

if(NOT RWKV_EDGE_INCLUDE_DIR OR NOT (TARGET rwkv_edge::rwkv_edge OR TARGET rwkv_edge::static))
  set(rwkv_edge_FOUND FALSE)
  set(rwkv_edge_NOT_FOUND_MESSAGE "neither librwkv_edge.so nor librwkv_edge.a under ${_rwkv_edge_prefix}")
endif()
